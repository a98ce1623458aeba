"""The buffers of one chunk of tokens, reused for every chunk, and the ways from tokens to CSR.

- `Direct`: ReLU and JumpReLU where the product is the answer. Hits say which latents are active, so a token's entries
  have their places before one of them is read.
- `Screened`: ReLU and JumpReLU where it only screens. Hits are candidates, and of the product nothing else is kept.
- `TopK`, in any precision: maxima give every token a floor, and what can be above it lies in slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import triton
from torch import Tensor

from patchsae_kernels.triton import hits, library, pick, product, topk
from patchsae_kernels.triton.centre import centre
from patchsae_kernels.triton.cutoffs import cutoffs
from patchsae_kernels.triton.pack import Packed
from patchsae_kernels.triton.pick import Candidates

TILE = 128  # tokens of a tile of the product
MOST_LATENTS = 2**31 - 1


@dataclass(frozen=True)
class Request:
    """What one encode asks for, apart from its tokens.

    Attributes:
        threshold: float32 ``[S]`` for JumpReLU, else None.
        k: for top-k, else 0.
        precision: of the products: ``"exact"``, ``"bf16"`` or ``"fp32"``.
        fused: Triton's product; otherwise the library's.
        slots: candidates that a token may have.
        places: candidates a token that a chunk has room for, where their numbers are known first.
        budget: bytes for one chunk and its temporaries.
    """

    weights: Packed
    b_dec: Tensor
    threshold: Tensor | None
    k: int
    precision: str
    fused: bool
    slots: int
    places: int
    budget: int

    @property
    def exact(self) -> bool:
        return self.precision == "exact"

    @property
    def padded_threshold(self) -> Tensor | None:
        """``[Sp]``, 0 for padding latents."""
        if self.threshold is None:
            return None
        padded = self.threshold.new_zeros(self.weights.low.shape[0], dtype=torch.float32)
        padded[: self.threshold.shape[0]] = self.threshold.detach()
        return padded


class Workspace(Protocol):
    """``rows`` tokens at most at a time."""

    rows: int

    def encode(
        self, x: Tensor, first_row: int, flags: Tensor, values: Tensor, indices: Tensor, indptr: Tensor
    ) -> Tensor:
        """Encode the tokens ``x`` of one chunk.

        Entries go to ``indptr[0]`` (already there) and on; ``indptr`` ``[rows + 1]`` is continued. Returns the number
        of candidates of every token (of entries, where nothing is picked), valid until the next chunk.
        """


def workspace(x: Tensor, call: Request) -> Workspace:
    """For the tokens ``x`` ``[N, D]``, in chunks within the budget."""
    if call.k:
        return TopK(x, call)
    return Screened(x, call) if call.exact else Direct(x, call)


def chunks(tokens: int, rows: int) -> list[slice]:
    """Tokens in order, in as few chunks of at most ``rows`` as can be, equal to within one tile of the product."""
    unit = TILE if rows >= TILE else 1
    units = triton.cdiv(tokens, unit)
    count = triton.cdiv(units, rows // unit)
    ends = [min(unit * (units * i // count), tokens) for i in range(1, count + 1)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def chunk_rows(tokens: int, row_bytes: int, budget: int) -> int:
    """Tokens of the largest of equal chunks within the budget; whole tiles, where one fits."""
    most = max(1, budget // row_bytes)
    if most < TILE:
        return max(1, min(most, tokens))
    tiles = max(1, triton.cdiv(tokens, TILE))
    return triton.cdiv(tiles, triton.cdiv(tiles, most // TILE)) * TILE


class _Tokens:
    """What every way begins with: tokens of a chunk in low precision, their terms, a word or a number a bucket."""

    def __init__(self, x: Tensor, call: Request, found: torch.dtype, row_bytes: int) -> None:
        latents, depth = call.weights.low.shape
        self.call, self.width = call, latents // product.BUCKET
        own = depth * call.weights.low.element_size() + 8 * self.width
        self.rows = chunk_rows(x.shape[0], own + row_bytes, call.budget)
        self.low = call.weights.low.new_empty(self.rows, depth)
        self.terms = x.new_empty(self.rows, 3, dtype=torch.float32)
        self.found = x.new_empty(self.rows, self.width, dtype=found)
        self.buckets = x.new_empty(self.rows, self.width, dtype=torch.int32)
        self.counts, self.listed = x.new_empty(2, self.rows, dtype=torch.int32)

    def centred(self, x: Tensor, first_row: int, flags: Tensor) -> tuple[Tensor, Tensor]:
        n = slice(0, x.shape[0])
        centre(x, self.call.b_dec, self.call.weights.tau, self.low[n], self.terms[n], flags, first_row)
        return self.low[n], self.terms[n]


class Direct(_Tokens):
    def __init__(self, x: Tensor, call: Request) -> None:
        low = call.weights.low
        latents = low.shape[0]
        super().__init__(x, call, torch.int32, latents * low.element_size() + 4 * latents // product.BUCKET)
        self.firsts = torch.empty_like(self.buckets)
        self.chunk = low.new_empty(self.rows, latents)
        self.cutoffs = cutoffs(call.weights.bias, call.padded_threshold, low.dtype)

    def encode(
        self, x: Tensor, first_row: int, flags: Tensor, values: Tensor, indices: Tensor, indptr: Tensor
    ) -> Tensor:
        n, weights = slice(0, x.shape[0]), self.call.weights
        words, chunk, counts = self.found[n], self.chunk[n], self.counts[n]
        low, terms = self.centred(x, first_row, flags)
        if self.call.fused:
            product.fused_hits(low, weights.low, terms, weights.bias, self.cutoffs, words, chunk)
        else:
            library.library_hits(low, weights.low, self.cutoffs, words, chunk)
        listed = self.buckets[n], self.firsts[n], self.listed[n]
        hits.list_hits(words, MOST_LATENTS, *listed, counts)
        _continue(indptr, counts)
        hits.gather_hits(words, *listed, indptr, indices, chunk, weights.bias, values)
        return counts


class Screened(_Tokens):
    def __init__(self, x: Tensor, call: Request) -> None:
        weights = call.weights
        slices = pick.slices_of(weights.rows.shape[1])
        place = 4 * (2 + slices)  # latent, token, parts
        super().__init__(x, call, torch.int32, 4 * weights.low.shape[0] // product.BUCKET + place * call.places)
        places = max(self.rows * call.places, 2 * call.slots)
        self.firsts = torch.empty_like(self.buckets)
        self.latents, self.owners = x.new_empty(2, places, dtype=torch.int32)
        self.parts = x.new_empty(slices, places, dtype=torch.float32)
        self.pointers = x.new_zeros(self.rows + 1, dtype=torch.int64)
        self.floors = x.new_empty(self.rows, dtype=torch.float32)
        self.quotas, self.kept = x.new_empty(2, self.rows, dtype=torch.int32)
        self.threshold = call.padded_threshold
        self.bias = weights.bias
        if self.threshold is not None:
            self.bias = weights.bias - product.SURELY * self.threshold

    def encode(
        self, x: Tensor, first_row: int, flags: Tensor, values: Tensor, indices: Tensor, indptr: Tensor
    ) -> Tensor:
        call, n = self.call, slice(0, x.shape[0])
        weights, words, counts, kept = call.weights, self.found[n], self.counts[n], self.kept[n]
        low, terms = self.centred(x, first_row, flags)
        product.fused_hits(low, weights.low, terms, self.bias, weights.bucket_terms, words, None)
        listed = self.buckets[n], self.firsts[n], self.listed[n]
        hits.list_hits(words, call.slots, *listed, counts)
        pointers = self.pointers[: x.shape[0] + 1]
        _continue(pointers, torch.where(counts <= call.slots, counts, 0))
        hits.gather_hits(words, *listed, pointers, self.latents, rows=self.owners)
        candidates = Candidates(
            self.latents, self.parts, counts, pointers, self.owners, 0, weights.bias, self.threshold
        )
        pick.rescore(x, call.b_dec, weights.rows, candidates)
        pick.settle(candidates, 0, self.floors[n], self.quotas[n], kept, flags, call.slots + 1)
        _continue(indptr, kept)
        pick.write(candidates, self.floors[n], self.quotas[n], indptr, values, indices)
        return counts


class TopK(_Tokens):
    def __init__(self, x: Tensor, call: Request) -> None:
        low = call.weights.low
        slices = pick.slices_of(call.weights.rows.shape[1]) if call.exact else 1
        row_bytes = low.shape[0] * low.element_size() + 4 * (1 + slices) * call.slots
        super().__init__(x, call, torch.float32, row_bytes)
        self.chunk = low.new_empty(self.rows, low.shape[0])
        self.floors = x.new_empty(self.rows, dtype=torch.float32)
        self.quotas, self.kept = x.new_empty(2, self.rows, dtype=torch.int32)
        self.indices = x.new_empty(self.rows, call.slots, dtype=torch.int32)
        self.parts = x.new_empty(slices, self.rows, call.slots, dtype=torch.float32)

    def encode(
        self, x: Tensor, first_row: int, flags: Tensor, values: Tensor, indices: Tensor, indptr: Tensor
    ) -> Tensor:
        call, n = self.call, slice(0, x.shape[0])
        weights, maxima, chunk, counts = call.weights, self.found[n], self.chunk[n], self.counts[n]
        floors, quotas, kept = self.floors[n], self.quotas[n], self.kept[n]
        low, terms = self.centred(x, first_row, flags)
        multiply = product.fused_maxima if call.fused else library.library_maxima
        multiply(low, weights.low, terms, weights.bias, chunk, maxima)
        listed = self.buckets[n], self.listed[n], floors
        topk.find_buckets(maxima, terms, weights.bucket_terms, call.k, low.dtype, *listed)
        slots, parts = self.indices[n], self.parts.view(-1)[: self.parts.shape[0] * self.indices[n].numel()]
        parts = parts.view(self.parts.shape[0], -1)
        topk.gather(chunk, weights.bias, terms, weights.terms, *listed, parts[0].view(slots.shape), slots, counts)
        bias = weights.bias if call.exact else None
        candidates = Candidates(slots.view(-1), parts, counts, None, None, call.slots, bias, None)
        if call.exact:
            pick.rescore(x, call.b_dec, weights.rows, candidates)
        pick.settle(candidates, call.k, floors, quotas, kept, flags, 0)
        _continue(indptr, kept)
        pick.write(candidates, floors, quotas, indptr, values, indices)
        return counts


def _continue(indptr: Tensor, counts: Tensor) -> None:
    """``indptr[1:] = indptr[0] + running sum of counts``."""
    torch.cumsum(counts, 0, dtype=torch.int64, out=indptr[1:])
    indptr[1:].add_(indptr[0])  # += would copy the slice onto itself as well

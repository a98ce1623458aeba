"""Encode on a GPU: tokens to CSR, one chunk of tokens at a time, without leaving the device until the sizes are needed.

For every chunk: centre and round the tokens (`screen.centre`), multiply (`product`), find the buckets that can hold
something, then either count and write (ReLU and JumpReLU as screened), or gather candidates, score them again in
float32 (``exact``), settle which are active and write those. Nothing of a chunk outlives it but its CSR.

Fixed capacities and what happens when they do not suffice: a token with more candidates than slots is encoded again
on its own in plain float32 (one order of summation, so its bits do not depend on the batch either); a batch with more
entries than the output holds is encoded again with the exact number. Nothing is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.batch_topk import select_over_batch
from patchsae_kernels.latents import indptr_from_counts
from patchsae_kernels.triton import pick, product, screen, tuning
from patchsae_kernels.triton.pack import DEPTH_MULTIPLE, Packed, pack

CSR = tuple[Tensor, Tensor, Tensor]
SLOTS = 4096  # candidates of a token: 27 times a trained L0, and 32 KB a token of one chunk
EXPECTED = 512  # entries a token that ReLU's output is first allocated for
MAX_DEPTH = 16384  # float16 products of rows scaled to below 2 and 1 cannot overflow up to here


@dataclass(frozen=True)
class Request:
    """What one encode asks for, apart from its tokens.

    Attributes:
        threshold: float32 ``[S]`` for JumpReLU, else None.
        k: for top-k, else 0.
        precision: of the products: ``"exact"``, ``"bf16"`` or ``"fp32"``.
        fused: the fused product; otherwise the library's.
        slots: candidates a token may have; 0 writes what was screened without gathering it first.
        budget: bytes for one chunk and its temporaries.
    """

    weights: Packed
    b_dec: Tensor
    threshold: Tensor | None
    k: int
    precision: str
    fused: bool
    slots: int
    budget: int

    @property
    def exact(self) -> bool:
        return self.precision == "exact"


def takes(x: Tensor, W_enc: Tensor) -> bool:
    """float64 is the oracle's and stays with the reference, as do inputs too deep for float16 products."""
    return torch.float64 not in (x.dtype, W_enc.dtype) and 0 < W_enc.shape[0] <= MAX_DEPTH


def encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    packed: list[Tensor],
    threshold: Tensor | None,
    activation: str,
    k: int,
    precision: str,
    budget: int,
) -> CSR:
    """See `patchsae_kernels.encode`; ``packed``: what `pack` made for this precision, or empty.

    Reads the device once, when everything is done (once more for each capacity that did not suffice): the number of
    entries, tokens over their slots, the first row that is not finite, a negative threshold.
    """
    if activation == "batchtopk":
        return select_over_batch(
            lambda m: encode(x, W_enc, b_enc, b_dec, packed, threshold, "topk", m, precision, budget),
            x.shape[0],
            k,
            W_enc.shape[1],
        )
    call = request(W_enc, b_enc, b_dec, packed, threshold, k, precision, budget)
    x = x.contiguous()
    tokens, latents = x.shape[0], W_enc.shape[1]
    capacity = tokens * min(k or EXPECTED, latents)
    while True:
        values, indices, indptr, candidates, status = encode_into(x, call, capacity)
        needed, over = read_status(status, x)
        if needed <= capacity:
            break
        capacity = needed
    values, indices = values[:needed].clone(), indices[:needed].clone()  # the spare capacity is given back
    if over:
        return _repair(x, W_enc, b_enc, call, candidates, (values, indices, indptr))
    return values, indices, indptr


def encode_bounded(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    packed: list[Tensor],
    threshold: Tensor | None,
    activation: str,
    k: int,
    precision: str,
    budget: int,
    capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `patchsae_kernels.encode_bounded`. Never reads the device, so it can be captured in a graph."""
    call = request(W_enc, b_enc, b_dec, packed, threshold, k, precision, budget)
    values, indices, indptr, _, status = encode_into(x.contiguous(), call, capacity)
    return values, indices, indptr.clamp_(max=capacity), status  # whoever follows indptr stays in the arrays


def screening_report(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, budget: int = 2**28) -> Tensor:
    """int32 ``[N]``: candidates that the exact ReLU encode scores again for every token."""
    call = request(W_enc, b_enc, b_dec, [], None, 0, "exact", budget)
    return encode_into(x.contiguous(), call, x.shape[0])[3]


def request(
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    packed: list[Tensor],
    threshold: Tensor | None,
    k: int,
    precision: str,
    budget: int,
) -> Request:
    """The launch decisions for one encode."""
    weights = Packed(*packed) if packed else pack(W_enc, b_enc, precision)
    fused = tuning.product_design(precision) == "fused"
    slots = 0
    if k or precision == "exact":
        slots = min(max(SLOTS, triton.next_power_of_2(2 * k)), triton.next_power_of_2(weights.low.shape[0]))
    return Request(weights, b_dec.detach().contiguous(), threshold, k, precision, fused, slots, budget)


def encode_into(x: Tensor, call: Request, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Encode without reading the device.

    Returns:
        values float32 ``[capacity]`` and indices int32 ``[capacity]``, of which the first ``indptr[-1]`` are used where
        that is at most capacity; indptr int64 ``[N + 1]``; candidates int32 ``[N]``; status, see `read_status`.
    """
    tokens = x.shape[0]
    values = x.new_empty(capacity, dtype=torch.float32)
    indices = x.new_empty(capacity, dtype=torch.int32)
    indptr = x.new_zeros(tokens + 1, dtype=torch.int64)
    candidates = x.new_empty(tokens, dtype=torch.int32)
    flags = new_flags(x)
    space = Workspace(x, call)
    for rows in space.chunks(tokens):
        counts = space.encode(x[rows], rows.start, flags, values, indices, indptr[rows.start : rows.stop + 1])
        candidates[rows] = counts
    return values, indices, indptr, candidates, make_status(indptr[-1], flags, call.threshold)


def new_flags(x: Tensor) -> Tensor:
    """int32 ``[2]``: tokens with more candidates than slots; first row that is not finite (N: none)."""
    flags = x.new_zeros(2, dtype=torch.int32)
    flags[1:] = x.shape[0]
    return flags


def make_status(entries: Tensor, flags: Tensor, threshold: Tensor | None) -> Tensor:
    """int64 ``[4]``: entries, the two flags, 1 for a threshold that is negative or NaN."""
    wrong = torch.zeros_like(entries) if threshold is None else (~(threshold >= 0)).any().to(torch.int64)
    return torch.cat([entries.reshape(1), flags.to(torch.int64), wrong.reshape(1)])


def read_status(status: Tensor, x: Tensor) -> tuple[int, int]:
    """Entries and tokens over their slots, read from the device; ValueError where the input was wrong."""
    entries, over, bad, wrong = status.tolist()
    if bad < x.shape[0]:
        checks.finite_rows("x", x)
        raise ValueError(f"x - b_dec passes the range of float32 in row {bad}")
    if wrong:
        raise ValueError("threshold holds a negative value or NaN; expected threshold >= 0")
    return entries, over


class Workspace:
    """The buffers of one chunk, reused for every chunk."""

    def __init__(self, x: Tensor, call: Request) -> None:
        low = call.weights.low
        latents, depth = low.shape
        buckets = latents // product.BUCKET
        self.call = call
        self.rows = _chunk_rows(x.shape[0], latents, low.element_size(), buckets, call)
        self.low = low.new_empty(self.rows, depth)
        self.chunk = low.new_empty(self.rows, latents)
        self.maxima = x.new_empty(self.rows, buckets, dtype=torch.float32)
        self.hits = x.new_empty(self.rows, buckets, dtype=torch.int32)
        self.terms = x.new_empty(self.rows, 3, dtype=torch.float32)
        self.floors = x.new_empty(self.rows, dtype=torch.float32)
        self.found, self.counts, self.quotas, self.kept = x.new_empty(4, self.rows, dtype=torch.int32)
        self.slot_values = x.new_empty(self.rows, call.slots, dtype=torch.float32)
        self.slot_indices = x.new_empty(self.rows, call.slots, dtype=torch.int32)
        self.thresholds: tuple[Tensor | None, Tensor | None] = (None, None)
        if call.threshold is not None:
            padded = call.threshold.new_zeros(latents, dtype=torch.float32)
            padded[: call.threshold.shape[0]] = call.threshold.detach()
            self.thresholds = padded, padded.view(-1, product.BUCKET).amin(1)

    def chunks(self, tokens: int) -> list[slice]:
        return [slice(i, min(i + self.rows, tokens)) for i in range(0, tokens, self.rows)]

    def encode(
        self, x: Tensor, first_row: int, flags: Tensor, values: Tensor, indices: Tensor, indptr: Tensor
    ) -> Tensor:
        """Encode the tokens ``x`` of one chunk.

        Entries go to ``indptr[0]`` (already there) and on; ``indptr`` ``[rows + 1]`` is continued. Returns the number
        of candidates of every token (of entries, where nothing is gathered first), valid until the next chunk.
        """
        call, n = self.call, slice(0, x.shape[0])
        chunk, terms, found, floors, counts = (
            t[n] for t in (self.chunk, self.terms, self.found, self.floors, self.counts)
        )
        self._screen(x, first_row, flags)
        screened = (chunk, call.weights.bias, terms, call.weights.terms, self.thresholds[0], self.hits, found, floors)
        if not call.slots:
            screen.gather(*screened, call.exact, counts)
            _continue(indptr, counts)
            screen.gather(*screened, call.exact, counts, indptr, values, indices)
            return counts
        slots = self.slot_values[n], self.slot_indices[n]
        screen.gather(*screened, call.exact, counts, None, slots[0].view(-1), slots[1].view(-1), slots=call.slots)
        if call.exact:
            pick.rescore(x, call.b_dec, call.weights.rows, call.weights.bias, *slots, counts)
        kept, quotas = self.kept[n], self.quotas[n]
        pick.settle(*slots, counts, self.thresholds[0], call.k, floors, quotas, kept, flags)
        _continue(indptr, kept)
        pick.write(*slots, counts, self.thresholds[0], floors, quotas, indptr, values, indices)
        return counts

    def _screen(self, x: Tensor, first_row: int, flags: Tensor) -> None:
        call, n = self.call, slice(0, x.shape[0])
        weights = call.weights
        low, terms, chunk, maxima = self.low[n], self.terms[n], self.chunk[n], self.maxima[n]
        screen.centre(x, call.b_dec, weights.tau, low, terms, flags, first_row)
        multiply = product.fused_product if call.fused else product.library_product
        multiply(low, weights.low, terms[:, 0], weights.bias, chunk, maxima)
        screen.find_buckets(
            maxima,
            terms,
            weights.bucket_terms,
            self.thresholds[1],
            call.k,
            call.exact,
            self.hits,
            self.found[n],
            self.floors[n],
        )


def _chunk_rows(tokens: int, latents: int, element: int, buckets: int, call: Request) -> int:
    """Tokens of a chunk: within the budget, equal chunks, a multiple of the product's 128-token tiles."""
    row = latents * element + 8 * buckets + 8 * call.slots + 2 * DEPTH_MULTIPLE
    most, tile = max(1, call.budget // row), 128
    if most < tile:
        return max(1, min(most, tokens))
    tiles = max(1, triton.cdiv(tokens, tile))
    chunks = triton.cdiv(tiles, most // tile)
    return triton.cdiv(tiles, chunks) * tile


def _continue(indptr: Tensor, counts: Tensor) -> None:
    """``indptr[1:] = indptr[0] + running sum of counts``."""
    torch.cumsum(counts, 0, dtype=torch.int64, out=indptr[1:])
    indptr[1:].add_(indptr[0])  # += would copy the slice onto itself as well


def _repair(x: Tensor, W_enc: Tensor, b_enc: Tensor, call: Request, candidates: Tensor, csr: CSR) -> CSR:
    """Encode the tokens with more candidates than slots again, and put them in their places."""
    rows = (candidates > call.slots).nonzero().squeeze(1)
    precision = "fp32" if call.exact else call.precision
    weights = pack(W_enc, b_enc, precision) if call.exact else call.weights
    slots = triton.next_power_of_2(weights.low.shape[0]) if call.k else 0
    again = Request(weights, call.b_dec, call.threshold, call.k, precision, True, slots, call.budget)
    some = x[rows]
    # Only candidates can be active, and a float32 product that rounds to the other side of 0 is one more at most each.
    capacity = rows.shape[0] * call.k if call.k else int(candidates[rows].sum())
    while True:
        values, indices, indptr, _, status = encode_into(some, again, capacity)
        needed = read_status(status, some)[0]
        if needed <= capacity:
            return _merge(csr, rows, (values[:needed], indices[:needed], indptr))
        capacity = needed


def _merge(csr: CSR, rows: Tensor, more: CSR) -> CSR:
    """Insert the entries of ``more``, whose row i is row ``rows[i]``, into rows that are empty in ``csr``."""
    counts, extra = csr[2].diff(), more[2].diff()
    entries = more[0].shape[0]
    row = torch.repeat_interleave(torch.arange(counts.shape[0], device=rows.device), counts)
    order = torch.argsort(torch.cat([row, torch.repeat_interleave(rows, extra, output_size=entries)]), stable=True)
    values, indices = torch.cat([csr[0], more[0]])[order], torch.cat([csr[1], more[1]])[order]
    return values, indices, indptr_from_counts(counts.index_add(0, rows, extra))

"""Decode on a GPU: gather the dictionary rows of each token's active latents and add them up.

What bounds it: L0 149 rows of D = 768 are 229 KB a token in bfloat16 and 457 KB in float32; a paper batch of 25,216
tokens moves 5.8 and 11.5 GB, far more than the dictionary's 75 and 151 MB, so nearly all of it can come from the
L2: 1.05 and 2.1 ms at 5.5 TB/s. Issuing the instructions (31 a row and warp in bfloat16, from the machine code)
takes 0.4 ms beside it. Hence:

- D is cut into slices of 512 bytes, and tokens run fastest in the grid: while one slice is being served, what is
  gathered from is S * 512 bytes = 25 MB, which stays in the L2 of the parts in question (40 MB and more); the whole
  dictionary does not.
- A warp takes 16 bytes a lane: one row. A program's warps take rows in turn and each adds its own up, in the order of
  the entries, without shared memory, barriers or shuffles; at the end the warps' sums are added, first to last. The sum
  depends on nothing but the token.
- The rows of a step are loaded before the first is used: 8 a warp are 4 KB in flight, 128 KB in the 32 warps that a
  multiprocessor takes (at 64 registers); bandwidth times latency (42 bytes/ns a multiprocessor, 600 ns loaded) asks for
  25 KB. Only the last step is masked: eight masks in every step cost more than the arithmetic.
- Steps wait for each other, and a token may have twenty times as many entries as the mean: what passes `SEGMENT`
  entries is given to programs of its own, and their sums are added afterwards, first to last.
- D and the row stride are compiled in: an address is one multiply-add, and a D of whole slices needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.calls import DecodeCall, MaskedDecodeCall
from patchsae_kernels.triton.launch import launch

TYPES = (torch.float32, torch.bfloat16)
SLICE_BYTES = 512
TOKENS_PER_SUM = 128
ROWS = 8  # rows of a warp in one step
WARPS = 4
MOST_STEPS = 12  # of one program, whatever the token
SEGMENT = ROWS * WARPS * MOST_STEPS
"""Entries of a token that one program sums up; 384: two and a half times the mean of a trained dictionary."""


@dataclass(frozen=True)
class DecodeLaunch:
    """How the gathering kernels are started.

    Attributes:
        block_d: elements of a row that one program serves.
        num_warps: warps a program.
        rows: dictionary rows loaded together: `ROWS` a warp.
        num_stages: 1: nothing is pipelined through shared memory; other warps hide the latency.
    """

    block_d: int
    num_warps: int = 1
    num_stages: int = 1

    @property
    def rows(self) -> int:
        return ROWS * self.num_warps


def decode_launch(width: int, dtype: torch.dtype, warps: int = 1) -> DecodeLaunch:
    """A slice of a row is one 16-byte load a lane of a 32-wide warp: 256 bfloat16 or 128 float32 (D = 768: 3 or 6)."""
    return DecodeLaunch(min(SLICE_BYTES // dtype.itemsize, max(16, triton.next_power_of_2(width))), warps)


def serves(call: DecodeCall) -> bool:
    """Of the functions here and in `patchsae_kernels.triton.sweep`."""
    return call.values.dtype in TYPES and call.W_dec.dtype in TYPES and call.b_dec.dtype == torch.float32


def decode(call: DecodeCall) -> Tensor:
    """``z W_dec + b_dec``, ``[N, D]`` float32, accumulated in float32.

    Indices must lie in 0..S-1: they are not checked. W_dec is copied first unless the elements of a row are adjacent.
    """
    return _decode(call)


def decode_masked(call: MaskedDecodeCall) -> Tensor:
    """`decode` of the latents in ``keep``, ``[N, D]`` float32.

    Rows of dropped latents are not loaded. A token whose class is not in 0..C-1 is NaN.
    """
    return _decode(call, call.keep, call.class_ids)


def decode_with_losses(call: DecodeCall, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`decode` and each token's loss terms in the same pass.

    Args:
        x: what was encoded, ``[N, D]`` float32, bfloat16 or float16.

    Returns:
        ``y`` ``[N, D]``, ``sum_d (y - x)^2`` ``[N]`` and the sum of the values ``[N]``, all float32, and the number of
        entries, int32 ``[N]``.
    """
    tokens, count = call.tokens, slices(call.W_dec)
    parts = call.W_dec.new_empty(count, tokens, dtype=torch.float32)
    squared_error, l1 = parts.new_empty(tokens), parts.new_empty(tokens)
    l0 = parts.new_empty(tokens, dtype=torch.int32)
    y = _decode(call, losses=(adjacent(x), parts, l1, l0))
    grid = (triton.cdiv(tokens, TOKENS_PER_SUM),)
    options = {"BLOCK": TOKENS_PER_SUM, "num_warps": 4, "num_stages": 1}
    launch(decode_losses_kernel, grid, parts, squared_error, tokens, count, **options)
    return y, squared_error, l1, l0


def _decode(
    call: DecodeCall,
    keep: Tensor | None = None,
    class_ids: Tensor | None = None,
    losses: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    tokens, (latents, width) = call.tokens, call.W_dec.shape
    W_dec, config = adjacent(call.W_dec), decode_launch(width, call.W_dec.dtype, WARPS)
    indptr = call.indptr.contiguous()
    x, parts, l1, l0 = losses if losses is not None else (None, None, None, None)
    y = W_dec.new_empty(tokens, width, dtype=torch.float32)
    more = further_segments(indptr, call.values.shape[0])
    sums = y.new_empty(more.tokens.shape[0], width)
    l1_sums = None if x is None else y.new_empty(more.tokens.shape[0])
    shape = (tokens, 1 if x is None else x.stride(0))
    options = {"D": width, "BLOCK_D": config.block_d, "SEGMENT": SEGMENT, "num_stages": config.num_stages}
    launch(
        decode_kernel,
        (tokens + more.tokens.shape[0], slices(W_dec)),
        call.values.contiguous(),
        call.indices.contiguous(),
        indptr,
        *more,
        None if keep is None else keep.contiguous().view(torch.uint8),
        None if class_ids is None else class_ids.contiguous(),
        W_dec,
        call.b_dec.contiguous(),
        y,
        sums,
        x,
        parts,
        l1,
        l1_sums,
        l0,
        *shape,
        latents,
        1 if keep is None or class_ids is None else keep.shape[0],
        W_STRIDE=W_dec.stride(0),
        ROWS=config.rows,
        WARPS=config.num_warps,
        num_warps=config.num_warps,
        **options,
    )
    launch(
        decode_join_kernel,
        (more.tokens.shape[0], slices(W_dec)),
        *(indptr, *more, y, sums, x, parts, l1, l1_sums, *shape),
        num_warps=1,
        **options,
    )
    return y


class Further(NamedTuple):
    """Segments of `SEGMENT` entries after a token's first: of E places for them the first ``used`` are taken."""

    tokens: Tensor  # int32 [E], the token of each; those of one token lie side by side
    firsts: Tensor  # int32 [N], the place of a token's second segment; undefined where it has none
    used: Tensor  # int32 [1]


def further_segments(indptr: Tensor, entries: int) -> Further:
    """Of the tokens of ``indptr``, which has at most ``entries`` entries. Nothing is read back to the host."""
    tokens = indptr.shape[0] - 1
    listed, firsts = (torch.empty(n, dtype=torch.int32, device=indptr.device) for n in (entries // SEGMENT, tokens))
    count = torch.zeros(1, dtype=torch.int32, device=indptr.device)
    if listed.shape[0]:
        grid = (triton.cdiv(tokens, TOKENS_PER_SUM),)
        options = {"SEGMENT": SEGMENT, "BLOCK": TOKENS_PER_SUM, "num_warps": 4, "num_stages": 1}
        launch(further_segments_kernel, grid, indptr, listed, firsts, count, tokens, **options)
    return Further(listed, firsts, count)


def slices(W_dec: Tensor) -> int:
    """How many programs share a row of D elements."""
    return triton.cdiv(W_dec.shape[1], decode_launch(W_dec.shape[1], W_dec.dtype).block_d)


def adjacent(matrix: Tensor) -> Tensor:
    """The elements of a row side by side; rows may lie anywhere."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


@triton.jit
def decode_kernel(
    values,
    indices,
    indptr,
    further_tokens,
    further_firsts,
    further_count,
    keep,
    class_ids,
    W_dec,
    b_dec,
    y,
    sums,
    x,
    squared_error_parts,
    l1,
    l1_sums,
    l0,
    tokens,
    x_stride,
    S,
    classes,
    D: tl.constexpr,
    W_STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """One program is one slice of a token's first segment, or of a further one."""
    place = tl.program_id(0)
    further = place - tokens
    segment = 0
    token = place.to(tl.int64)
    exists = further < 0
    if further >= 0:
        exists = further < tl.load(further_count)
        token = tl.load(further_tokens + further, mask=exists, other=0).to(tl.int64)
        segment = further - tl.load(further_firsts + token, mask=exists, other=0) + 1
    if exists:
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)  # [BD]
        inside = columns < D
        begin = tl.load(indptr + token)
        whole = (tl.load(indptr + token + 1) - begin).to(tl.int32)
        known = whole >= 0
        if class_ids is not None:
            row, known = class_row(class_ids + token, classes)
            keep += row * S
        begin += segment * SEGMENT
        count = tl.where(known, tl.minimum(whole - segment * SEGMENT, SEGMENT), 0)
        total, l1_sum = add_rows(
            values + begin, indices + begin, count, keep, W_dec, columns, D, W_STRIDE, ROWS, WARPS, BLOCK_D
        )
        if further >= 0:
            tl.store(sums + further.to(tl.int64) * D + columns, total, mask=inside)
            if x is not None:
                tl.store(l1_sums + further, l1_sum, mask=tl.program_id(1) == 0)
        else:
            out = tl.load(b_dec + columns, mask=inside, other=0.0) + total
            out = tl.where(known, out, float("nan"))
            tl.store(y + token * D + columns, out, mask=inside)
            if x is not None:
                # Where more segments follow, `decode_join_kernel` writes these again.
                error = squared_error(x + token * x_stride, out, columns, inside)
                tl.store(squared_error_parts + tl.program_id(1).to(tl.int64) * tokens + token, error)
                tl.store(l1 + token, l1_sum, mask=tl.program_id(1) == 0)
                tl.store(l0 + token, whole, mask=tl.program_id(1) == 0)


@triton.jit
def squared_error(x, out, columns, inside):
    """``sum (out - x)^2`` over the columns inside."""
    target = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    error = tl.where(inside, out - target, 0.0)
    return tl.sum(error * error, 0)


@triton.jit
def further_segments_kernel(indptr, tokens_of, firsts, count, tokens, SEGMENT: tl.constexpr, BLOCK: tl.constexpr):
    """List the segments after a token's first; in which order tokens come does not matter, those of one are a run."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    begin = tl.load(indptr + token, mask=inside, other=0)
    entries = (tl.load(indptr + token + 1, mask=inside, other=0) - begin).to(tl.int32)
    further = tl.maximum((entries + SEGMENT - 1) // SEGMENT - 1, 0)
    most = tl.max(further, 0)
    if most > 0:
        before = tl.cumsum(further, 0) - further
        first = tl.atomic_add(count, tl.sum(further, 0), sem="relaxed") + before
        tl.store(firsts + token, first, mask=inside)
        for segment in range(most):
            tl.store(tokens_of + first + segment, token, mask=inside & (segment < further))


@triton.jit
def decode_join_kernel(
    indptr,
    further_tokens,
    further_firsts,
    further_count,
    y,
    sums,
    x,
    squared_error_parts,
    l1,
    l1_sums,
    tokens,
    x_stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Add a token's further segments to its first, in order. The program of its second segment does it."""
    further = tl.program_id(0)
    exists = further < tl.load(further_count)
    token = tl.load(further_tokens + further, mask=exists, other=0).to(tl.int64)
    if exists & (tl.load(further_firsts + token, mask=exists, other=-1) == further):
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = columns < D
        entries = (tl.load(indptr + token + 1) - tl.load(indptr + token)).to(tl.int32)
        out = tl.load(y + token * D + columns, mask=inside, other=0.0)
        l1_sum = 0.0
        for segment in range((entries + SEGMENT - 1) // SEGMENT - 1):
            out += tl.load(sums + (further + segment).to(tl.int64) * D + columns, mask=inside, other=0.0)
            if x is not None:
                l1_sum += tl.load(l1_sums + further + segment)
        tl.store(y + token * D + columns, out, mask=inside)
        if x is not None:
            error = squared_error(x + token * x_stride, out, columns, inside)
            tl.store(squared_error_parts + tl.program_id(1).to(tl.int64) * tokens + token, error)
            if tl.program_id(1) == 0:
                tl.store(l1 + token, tl.load(l1 + token) + l1_sum)


@triton.jit
def decode_losses_kernel(parts, squared_error, tokens, count, BLOCK: tl.constexpr):
    """Add up the slices' squared errors from first to last: 4 bytes in a slice and token, nothing beside the gather."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(count):
        total += tl.load(parts + token, mask=inside, other=0.0)
        parts += tokens
    tl.store(squared_error + token, total, mask=inside)


@triton.jit
def add_rows(
    values,
    indices,
    count,
    keep,
    W_dec,
    columns,
    D: tl.constexpr,
    W_STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``sum_p values[p] * W_dec[indices[p], columns]`` over the kept of ``count`` entries; the sum of their values."""
    total = tl.zeros([WARPS, BLOCK_D], tl.float32)
    value_sums = tl.zeros([ROWS], tl.float32)
    entry = tl.arange(0, ROWS)
    whole = count - count % ROWS
    for start in range(0, whole, ROWS):
        value, rows = gather(values + start, indices + start, entry, None, keep, W_dec, columns, D, W_STRIDE, BLOCK_D)
        total += tl.sum(tl.reshape(value[:, None] * rows, [ROWS // WARPS, WARPS, BLOCK_D]), 0)
        value_sums += value
    if whole < count:
        value, rows = gather(
            values + whole, indices + whole, entry, entry < count - whole, keep, W_dec, columns, D, W_STRIDE, BLOCK_D
        )
        total += tl.sum(tl.reshape(value[:, None] * rows, [ROWS // WARPS, WARPS, BLOCK_D]), 0)
        value_sums += value
    return tl.sum(total, 0), tl.sum(value_sums, 0)


@triton.jit
def gather(
    values,
    indices,
    entry,
    there,
    keep,
    W_dec,
    columns,
    D: tl.constexpr,
    W_STRIDE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Values ``[R]`` and rows ``[R, BD]`` of entries; 0, and no row is loaded, where not ``there`` or not kept."""
    if there is not None:
        latent = tl.load(indices + entry, mask=there, other=0)
        value = tl.load(values + entry, mask=there, other=0.0).to(tl.float32)
    else:
        latent = tl.load(indices + entry)
        value = tl.load(values + entry).to(tl.float32)
    taken = there
    if keep is not None:
        kept = tl.load(keep + latent) != 0  # latent 0 past the end
        value = tl.where(kept, value, 0.0)
        taken = kept if there is None else kept & there
    address = W_dec + latent.to(tl.int64)[:, None] * W_STRIDE + columns[None, :]
    inside = (columns < D)[None, :]
    if taken is not None:
        rows = tl.load(address, mask=taken[:, None] if D % BLOCK_D == 0 else taken[:, None] & inside, other=0.0)
    else:
        rows = tl.load(address) if D % BLOCK_D == 0 else tl.load(address, mask=inside, other=0.0)
    return value, rows.to(tl.float32)


@triton.jit
def class_row(class_id, classes):
    """The row of a ``[C, S]`` table that a token uses, int64, and whether there is such a row; 0 if not."""
    row = tl.load(class_id)
    known = (row >= 0) & (row < classes)
    return tl.where(known, row, 0).to(tl.int64), known

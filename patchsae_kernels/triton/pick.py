"""From candidates to latents: score them again in float32, find the k-th largest, write what is active.

Candidates lie side by side, latents ascending. Where their numbers were known before they were gathered, a token's are
at ``pointers[row]`` on and those of all tokens are one run; otherwise each token has places of its own, ``slots`` of
them. A token whose candidates found no place has none here, and is answered elsewhere.

A candidate's value is the sum of its parts, first to last, and its bias: parts are what the slices of D contribute.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch

SLICE = 128  # floats of a row that are scored together: 25 MB of a table of 49,152 rows, which stays in the L2
SCORED = 64  # candidates of a step: 32 KB in flight
MOST_STEPS = 12  # of one program, where every place holds a candidate
BLOCK = 512
SEARCHED = 1024  # candidates that the search for the k-th largest can hold at once


@dataclass(frozen=True)
class Candidates:
    """Where the candidates of a chunk of tokens are.

    Attributes:
        indices: int32 ``[places]``, the latents.
        parts: float32 ``[slices, places]``, what their values are the sum of.
        counts: int32 ``[rows]``; a token with more than its places is over, and so marked by `settle`.
        pointers: int64 ``[rows + 1]``, or None where token i has the places ``i * slots`` on.
        owners: int32 ``[places]``, the token of each; None without pointers.
        slots: places of one token without pointers.
        bias: float32 ``[Sp]`` that the parts lack, or None.
        threshold: float32 ``[Sp]``, or None (0).
    """

    indices: Tensor
    parts: Tensor
    counts: Tensor
    pointers: Tensor | None
    owners: Tensor | None
    slots: int
    bias: Tensor | None
    threshold: Tensor | None


def rescore(x: Tensor, b_dec: Tensor, rows: Tensor, candidates: Candidates) -> None:
    """Write every candidate's ``(x - b_dec) . W_enc[:, s]`` in float32, slice by slice of D, as its parts.

    The order of summation depends on D alone, so a result does not depend on the other candidates or tokens. Where the
    candidates are one run, programs share it evenly, whoever's they are: a token with many holds nobody up. Slots keep
    one token from having too many. Bounded by reading the candidates' rows: 160 of 3 KB a token, and with the slices
    one after the other from the L2.

    Args:
        x: ``[N, D]``, contiguous rows. rows: ``[S, D]`` float32.
    """
    depth, places = x.shape[1], candidates.indices.shape[0]
    slices = candidates.parts.shape[0]
    block = SCORED if depth % 4 == 0 else SCORED // 2  # unaligned rows load element by element
    block *= 2 if candidates.slots > block * MOST_STEPS else 1
    programs = x.shape[0] if candidates.slots else triton.cdiv(places, block * MOST_STEPS)
    launch(
        rescore_kernel,
        (programs, slices),
        x,
        b_dec,
        rows,
        candidates.indices,
        candidates.owners,
        candidates.pointers,
        candidates.counts,
        candidates.parts,
        x.shape[0],
        places,
        x.stride(0),
        SLOTS=candidates.slots,
        DEPTH=depth,
        SLICE=triton.next_power_of_2(triton.cdiv(depth, slices)),
        BLOCK=block,
        num_warps=4 if block <= SCORED else 8,
        num_stages=1,
    )


def slices_of(depth: int) -> int:
    """Parts of a value that is scored again."""
    return triton.cdiv(depth, SLICE)


def settle(
    candidates: Candidates, k: int, floors: Tensor, quotas: Tensor, kept: Tensor, status: Tensor, over: int
) -> None:
    """Decide which candidates are active: count them, and say what `write` needs to take the same ones.

    Args:
        k: the most to keep, or 0 for all above the threshold.
        floors: float32 ``[rows]``, written: candidates above it are kept.
        quotas: int32 ``[rows]``, written: how many of those equal to it are kept as well, lower latents first.
        kept: int32 ``[rows]``, written; 0 for a token that is over.
        status: int32 ``[2]``; element 0 counts tokens that are over.
        over: what the count of a token becomes, at least, whose candidates found no place.
    """
    rows = candidates.counts.shape[0]
    once = k > 0 and candidates.slots <= SEARCHED
    block = candidates.slots if once else min(candidates.slots or BLOCK, BLOCK)
    launch(
        settle_kernel,
        (rows,),
        *_arguments(candidates),
        floors,
        quotas,
        kept,
        status,
        candidates.indices.shape[0],
        k,
        over,
        TOPK=k > 0,
        SLOTS=candidates.slots,
        PARTS=candidates.parts.shape[0],
        BLOCK=block,
        num_warps=4 if block <= BLOCK else 8,
        num_stages=1,
    )


def write(
    candidates: Candidates, floors: Tensor, quotas: Tensor, indptr: Tensor, out_values: Tensor, out_indices: Tensor
) -> None:
    """Copy the active candidates to ``indptr[row]`` on, latents ascending; none goes past the end of out_values."""
    rows = candidates.counts.shape[0]
    launch(
        write_kernel,
        (rows,),
        *_arguments(candidates),
        floors,
        quotas,
        indptr,
        out_values,
        out_indices,
        candidates.indices.shape[0],
        out_values.shape[0],
        SLOTS=candidates.slots,
        PARTS=candidates.parts.shape[0],
        BLOCK=min(candidates.slots or BLOCK, BLOCK),
        num_warps=4,
        num_stages=1,
    )


def _arguments(c: Candidates) -> tuple[Tensor | None, ...]:
    return c.parts, c.indices, c.counts, c.pointers, c.bias, c.threshold


@triton.jit
def rescore_kernel(
    x_ptr,
    b_dec_ptr,
    rows_ptr,  # [S, DEPTH]
    indices_ptr,
    owners_ptr,  # None with SLOTS, as pointers
    pointers_ptr,
    counts_ptr,
    parts_ptr,  # [slices, places]
    tokens,
    places,
    x_stride,
    SLOTS: tl.constexpr,
    DEPTH: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(1).to(tl.int64)
    d = part * SLICE + tl.arange(0, SLICE)
    b_dec = tl.load(b_dec_ptr + d, d < DEPTH, other=0.0)
    if SLOTS > 0:
        token = tl.program_id(0).to(tl.int64)
        count = tl.load(counts_ptr + token)
        first = tl.program_id(0) * SLOTS
        end = first + tl.where(count <= SLOTS, count, 0)
        stride = BLOCK
    else:
        first = tl.program_id(0) * BLOCK
        end = tl.minimum(tl.load(pointers_ptr + tokens), places).to(tl.int32)
        stride = tl.num_programs(0) * BLOCK
    for start in range(first, end, stride):
        place = start + tl.arange(0, BLOCK)
        there = place < end
        inside = there[:, None] & (d < DEPTH)[None, :]
        if SLOTS > 0:
            t = tl.load(x_ptr + token * x_stride + d, d < DEPTH, other=0.0).to(tl.float32)[None, :]
        else:
            owner = tl.load(owners_ptr + place, there, other=0).to(tl.int64)
            t = tl.load(x_ptr + owner[:, None] * x_stride + d[None, :], inside, other=0.0).to(tl.float32)
        latent = tl.load(indices_ptr + place, there, other=0).to(tl.int64)
        w = tl.load(rows_ptr + latent[:, None] * DEPTH + d[None, :], inside, other=0.0)
        scored = tl.sum(w * (t - b_dec[None, :]), 1)
        tl.store(parts_ptr + part * tl.cast(places, tl.int64) + place, scored, there)


@triton.jit
def _span(counts_ptr, pointers_ptr, row, places, SLOTS: tl.constexpr):
    """First place of a token's candidates, their number (0 if it is over), and whether it is."""
    count = tl.load(counts_ptr + row)
    if pointers_ptr is not None:
        first = tl.load(pointers_ptr + row)
        end = tl.load(pointers_ptr + row + 1)
        over = (count > end - first) | (end > places)
    else:
        first = row * SLOTS
        over = count > SLOTS
    return first, tl.where(over, 0, count), over


@triton.jit
def _candidates(parts_ptr, indices_ptr, bias_ptr, threshold_ptr, first, i, count, places, PARTS: tl.constexpr):
    """Latents, and values where active, else 0; an active value is positive because thresholds are."""
    inside = i < count
    latent = tl.load(indices_ptr + first + i, inside, other=0)
    value = tl.load(parts_ptr + first + i, inside, other=0.0)
    for part in range(1, PARTS):
        value += tl.load(parts_ptr + part * tl.cast(places, tl.int64) + first + i, inside, other=0.0)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + latent, inside, other=0.0)
    least = 0.0
    if threshold_ptr is not None:
        least = tl.load(threshold_ptr + latent, inside, other=0.0)
    return latent, tl.where((value > least) & inside, value, 0.0)


@triton.jit
def settle_kernel(
    parts_ptr,
    indices_ptr,
    counts_ptr,
    pointers_ptr,
    bias_ptr,
    threshold_ptr,
    floors_ptr,
    quotas_ptr,
    kept_ptr,
    status_ptr,
    places,
    k,
    marked,
    TOPK: tl.constexpr,
    SLOTS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first, count, over = _span(counts_ptr, pointers_ptr, row, places, SLOTS)
    tl.atomic_add(status_ptr, 1, mask=over)
    tl.store(counts_ptr + row, tl.maximum(tl.load(counts_ptr + row), tl.where(over, marked, 0)))
    i = tl.arange(0, BLOCK)
    _, value = _candidates(parts_ptr, indices_ptr, bias_ptr, threshold_ptr, first, i, count, places, PARTS)
    held = value.to(tl.int32, bitcast=True)
    key = 0
    if TOPK:
        for bit in range(31):
            trial = key | (1 << (30 - bit))
            enough = tl.sum((held >= trial).to(tl.int32), 0)
            for start in range(BLOCK, count, BLOCK):
                _, value = _candidates(
                    parts_ptr, indices_ptr, bias_ptr, threshold_ptr, first, start + i, count, places, PARTS
                )
                enough += tl.sum((value.to(tl.int32, bitcast=True) >= trial).to(tl.int32), 0)
            key = tl.where(enough >= k, trial, key)
    above = tl.sum((held > key).to(tl.int32), 0)
    equal = tl.sum(((held == key) & (held > 0)).to(tl.int32), 0)
    for start in range(BLOCK, count, BLOCK):
        _, value = _candidates(parts_ptr, indices_ptr, bias_ptr, threshold_ptr, first, start + i, count, places, PARTS)
        bits = value.to(tl.int32, bitcast=True)
        above += tl.sum((bits > key).to(tl.int32), 0)
        equal += tl.sum(((bits == key) & (bits > 0)).to(tl.int32), 0)
    quota = 0
    if TOPK:
        quota = tl.minimum(k - above, equal)
    tl.store(floors_ptr + row, tl.cast(key, tl.float32, bitcast=True))
    tl.store(quotas_ptr + row, quota)
    tl.store(kept_ptr + row, above + quota)


@triton.jit
def write_kernel(
    parts_ptr,
    indices_ptr,
    counts_ptr,
    pointers_ptr,
    bias_ptr,
    threshold_ptr,
    floors_ptr,
    quotas_ptr,
    indptr_ptr,
    out_values_ptr,
    out_indices_ptr,
    places,
    capacity,
    SLOTS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first, count, _ = _span(counts_ptr, pointers_ptr, row, places, SLOTS)
    floor = tl.load(floors_ptr + row)
    quota = tl.load(quotas_ptr + row)
    base = tl.load(indptr_ptr + row)
    total = 0
    ties = 0
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        latent, value = _candidates(parts_ptr, indices_ptr, bias_ptr, threshold_ptr, first, i, count, places, PARTS)
        tied = (value == floor) & (value > 0)
        rank = ties + tl.cumsum(tied.to(tl.int32), 0)
        keep = (value > floor) | (tied & (rank <= quota))
        place = base + total + tl.cumsum(keep.to(tl.int32), 0) - 1
        fits = keep & (place < capacity)
        tl.store(out_values_ptr + place, value, fits)
        tl.store(out_indices_ptr + place, latent, fits)
        ties += tl.sum(tied.to(tl.int32), 0)
        total += tl.sum(keep.to(tl.int32), 0)

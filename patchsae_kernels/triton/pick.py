"""From candidates to latents: score them again in float32, find the k-th largest, write what is active.

Candidates lie in slots: a token's own ``[slots]`` places of ``values`` and ``indices``, of which ``counts`` are used; a
token with more candidates than slots has none here and is answered elsewhere.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch

SCORED = 16  # candidates a step: 16 rows of 1 KB in flight for every token
DEPTH_BLOCK = 256


def rescore(
    x: Tensor, b_dec: Tensor, rows: Tensor, bias: Tensor, values: Tensor, indices: Tensor, counts: Tensor
) -> None:
    """Replace every candidate's value by its pre-activation in float32: ``(x - b_dec) . W_enc[:, s] + b_enc[s]``.

    The order of summation depends on D alone, so a result does not depend on the other candidates or tokens. Bounded by
    reading the candidates' rows: 200 candidates of 768 floats are 614 KB a token, mostly from the L2.

    Args:
        x: ``[N, D]``, contiguous rows. rows: ``[S, D]`` float32. values, indices: ``[N, slots]``.
    """
    depth = x.shape[1]
    launch(
        rescore_kernel,
        (x.shape[0],),
        x,
        b_dec,
        rows,
        bias,
        values,
        indices,
        counts,
        x.stride(0),
        SLOTS=values.shape[1],
        DEPTH=depth,
        DEPTH_BLOCK=min(DEPTH_BLOCK, triton.next_power_of_2(depth)),
        BLOCK=SCORED if depth % 4 == 0 else SCORED // 2,  # unaligned rows load element by element
        num_warps=4,
    )


def settle(
    values: Tensor,
    indices: Tensor,
    counts: Tensor,
    threshold: Tensor | None,
    k: int,
    floors: Tensor,
    quotas: Tensor,
    kept: Tensor,
    status: Tensor,
) -> None:
    """Decide which candidates are active: count them, and say what `write` needs to take the same ones.

    Args:
        threshold: ``[Sp]`` float32 or None (0). k: the most to keep, or 0 for all above the threshold.
        floors: float32 ``[N]``, written: candidates above it are kept. quotas: int32 ``[N]``, written: how many of
        those
            equal to it are kept as well, lower latents first. kept: int32 ``[N]``, written; 0 for a token whose
            candidates outnumber its slots. status: int32 ``[2]``; element 0 counts such tokens.
    """
    tokens, slots = values.shape
    launch(
        settle_kernel,
        (tokens,),
        values,
        indices,
        counts,
        threshold,
        floors,
        quotas,
        kept,
        status,
        k,
        TOPK=k > 0,
        SLOTS=slots,
        BLOCK=min(512, slots),
        num_warps=4,
    )


def write(
    values: Tensor,
    indices: Tensor,
    counts: Tensor,
    threshold: Tensor | None,
    floors: Tensor,
    quotas: Tensor,
    indptr: Tensor,
    out_values: Tensor,
    out_indices: Tensor,
) -> None:
    """Copy the active candidates to ``indptr[row]`` on, latents ascending; none goes past the end of out_values."""
    tokens, slots = values.shape
    launch(
        write_kernel,
        (tokens,),
        values,
        indices,
        counts,
        threshold,
        floors,
        quotas,
        indptr,
        out_values,
        out_indices,
        out_values.shape[0],
        SLOTS=slots,
        BLOCK=min(512, slots),
        num_warps=4,
    )


@triton.jit
def rescore_kernel(
    x_ptr,
    b_dec_ptr,
    rows_ptr,  # [S, DEPTH]
    bias_ptr,
    values_ptr,  # [N, SLOTS]
    indices_ptr,
    counts_ptr,
    x_stride,
    SLOTS: tl.constexpr,
    DEPTH: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + row)
    count = tl.where(count <= SLOTS, count, 0)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        latent = tl.load(indices_ptr + row * SLOTS + i, i < count, other=0).to(tl.int64)
        acc = tl.zeros((BLOCK, DEPTH_BLOCK), tl.float32)
        for first in range(0, DEPTH, DEPTH_BLOCK):
            d = first + tl.arange(0, DEPTH_BLOCK)
            x = tl.load(x_ptr + row * x_stride + d, d < DEPTH, other=0.0).to(tl.float32)
            x -= tl.load(b_dec_ptr + d, d < DEPTH, other=0.0)
            inside = (i < count)[:, None] & (d < DEPTH)[None, :]
            acc += tl.load(rows_ptr + latent[:, None] * DEPTH + d[None, :], inside, other=0.0) * x[None, :]
        pre = tl.sum(acc, 1) + tl.load(bias_ptr + latent, i < count, other=0.0)
        tl.store(values_ptr + row * SLOTS + i, pre, i < count)


@triton.jit
def _candidates(values_ptr, indices_ptr, threshold_ptr, row, i, count, SLOTS: tl.constexpr):
    """Values where active, else 0; an active value is positive because thresholds are."""
    inside = i < count
    value = tl.load(values_ptr + row * SLOTS + i, inside, other=0.0)
    least = 0.0
    if threshold_ptr is not None:
        latent = tl.load(indices_ptr + row * SLOTS + i, inside, other=0)
        least = tl.load(threshold_ptr + latent, inside, other=0.0)
    return tl.where((value > least) & inside, value, 0.0)


@triton.jit
def settle_kernel(
    values_ptr,
    indices_ptr,
    counts_ptr,
    threshold_ptr,
    floors_ptr,
    quotas_ptr,
    kept_ptr,
    status_ptr,
    k,
    TOPK: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + row)
    overflow = count > SLOTS
    tl.atomic_add(status_ptr, 1, mask=overflow)
    count = tl.where(overflow, 0, count)
    key = 0
    if TOPK:
        for bit in range(31):
            trial = key | (1 << (30 - bit))
            enough = 0
            for start in range(0, count, BLOCK):
                i = start + tl.arange(0, BLOCK)
                value = _candidates(values_ptr, indices_ptr, threshold_ptr, row, i, count, SLOTS)
                enough += tl.sum((value.to(tl.int32, bitcast=True) >= trial).to(tl.int32), 0)
            key = tl.where(enough >= k, trial, key)
    above = 0
    equal = 0
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        bits = _candidates(values_ptr, indices_ptr, threshold_ptr, row, i, count, SLOTS).to(tl.int32, bitcast=True)
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
    values_ptr,
    indices_ptr,
    counts_ptr,
    threshold_ptr,
    floors_ptr,
    quotas_ptr,
    indptr_ptr,
    out_values_ptr,
    out_indices_ptr,
    capacity,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + row)
    count = tl.where(count <= SLOTS, count, 0)
    floor = tl.load(floors_ptr + row)
    quota = tl.load(quotas_ptr + row)
    base = tl.load(indptr_ptr + row)
    total = 0
    ties = 0
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = _candidates(values_ptr, indices_ptr, threshold_ptr, row, i, count, SLOTS)
        tied = (value == floor) & (value > 0)
        rank = ties + tl.cumsum(tied.to(tl.int32), 0)
        keep = (value > floor) | (tied & (rank <= quota))
        place = base + total + tl.cumsum(keep.to(tl.int32), 0) - 1
        fits = keep & (place < capacity)
        latent = tl.load(indices_ptr + row * SLOTS + i, i < count, other=0)
        tl.store(out_values_ptr + place, value, fits)
        tl.store(out_indices_ptr + place, latent, fits)
        ties += tl.sum(tied.to(tl.int32), 0)
        total += tl.sum(keep.to(tl.int32), 0)

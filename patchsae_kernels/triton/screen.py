"""From tokens to candidates: centre and round the tokens, find the buckets that can hold something, gather what they
hold.

Between `centre` and `find_buckets` stands the product (`patchsae_kernels.triton.product`). Everything here works on one
chunk of tokens and reads nothing back to the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch
from patchsae_kernels.triton.pack import normal_or_zero
from patchsae_kernels.triton.product import BUCKET

GATHERED = (
    32  # buckets a step of the gather: five steps at a trained L0, each waits for its products; 64 spill on gfx942
)
SEARCHED = 2048  # buckets that the search for those that matter holds at once: 65,536 latents


def centre(x: Tensor, b_dec: Tensor, tau: Tensor, low: Tensor, terms: Tensor, status: Tensor, first_row: int) -> None:
    """Centre, scale (where low is float16) and round tokens.

    Args:
        x: ``[rows, D]`` float32, bfloat16 or float16; contiguous rows. b_dec: ``[D]``.
        low: ``[rows, Dp]``, written. terms: ``[rows, 3]`` float32, written: 1 / (scale tau), R, Q (see pack.py).
        status: int32 ``[2]``; element 1 becomes the first row (first_row added) that is not finite.
    """
    rows, depth = x.shape
    padded = low.shape[1]
    launch(
        centre_kernel,
        (rows,),
        x,
        b_dec,
        tau,
        low,
        terms,
        status,
        first_row,
        x.stride(0),
        1.0 + (depth + 64) * 2.0**-23,
        DEPTH=depth,
        PADDED=padded,
        SCALED=low.dtype == torch.float16,
        BLOCK=triton.next_power_of_2(padded),
        num_warps=4,
    )


def find_buckets(
    maxima: Tensor,
    terms: Tensor,
    bucket_terms: Tensor,
    threshold: Tensor | None,
    k: int,
    exact: bool,
    hits: Tensor,
    found: Tensor,
    floors: Tensor,
) -> None:
    """List the buckets of every token that can hold an active latent.

    With k > 0 a token's floor is a lower bound of its k-th largest pre-activation: the k-th largest of the buckets'
    lower bounds, for every bucket's largest latent is another latent. Nothing below the floor can be among the k
    largest.

    Args:
        maxima: ``[rows, buckets]`` float32. threshold: ``[buckets]`` float32, the least of a bucket, or None (0).
        hits: int32 ``[rows, buckets]``, written up to found. found: int32 ``[rows]``. floors: float32 ``[rows]``.
    """
    rows, buckets = maxima.shape
    once = buckets <= SEARCHED
    block = triton.next_power_of_2(buckets) if once else SEARCHED // 4
    launch(
        find_buckets_kernel,
        (rows,),
        maxima,
        terms,
        bucket_terms,
        threshold,
        hits,
        found,
        floors,
        buckets,
        k,
        TOPK=k > 0,
        EXACT=exact,
        ONCE=once,
        BLOCK=block,
        num_warps=8 if block > 1024 else 4,
        num_stages=1,
    )


def gather(
    chunk: Tensor,
    bias: Tensor,
    terms: Tensor,
    latent_terms: Tensor,
    threshold: Tensor | None,
    hits: Tensor,
    found: Tensor,
    floors: Tensor,
    exact: bool,
    counts: Tensor,
    offsets: Tensor | None = None,
    values: Tensor | None = None,
    indices: Tensor | None = None,
    slots: int = 0,
) -> None:
    """Count the candidates of the buckets found, and with ``values`` and ``indices`` write them, latents ascending.

    A candidate's screened pre-activation is above its threshold (with ``exact``: can be, by the bound) and not below
    the token's floor. A token's candidates go to ``offsets[row]`` on, up to the end of ``values``; without
    ``offsets`` to its own ``slots`` places. Those that do not fit are counted and not written.

    Args:
        threshold: ``[Sp]`` float32 or None (0). counts: int32 ``[rows]``, written in full.
        offsets: int64 ``[rows]``. values: float32, indices: int32, one-dimensional.
    """
    rows, latents = chunk.shape
    capacity = 0 if values is None else values.shape[0]
    launch(
        gather_kernel,
        (rows,),
        chunk,
        bias,
        terms,
        latent_terms,
        threshold,
        hits,
        found,
        floors,
        counts,
        offsets,
        values,
        indices,
        latents,
        capacity,
        EXACT=exact,
        WRITE=values is not None,
        SLOTS=slots,
        BUCKET=BUCKET,
        BLOCK=GATHERED,
        num_warps=4,
    )


@triton.jit
def centre_kernel(
    x_ptr,
    b_dec_ptr,
    tau_ptr,
    low_ptr,
    terms_ptr,
    status_ptr,
    first_row,
    x_stride,
    slack,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < DEPTH
    t = tl.load(x_ptr + row * x_stride + d, inside, other=0.0).to(tl.float32)
    t -= tl.load(b_dec_ptr + d, inside, other=0.0)
    largest = tl.max(tl.abs(t), 0)
    bad = tl.sum((tl.abs(t) < float("inf")).to(tl.int32), 0) < BLOCK  # a NaN compares false
    tl.atomic_min(status_ptr + 1, (first_row + row).to(tl.int32), mask=bad)
    scale = 1.0
    if SCALED:
        # The power of two that brings the largest element into [1, 2), from the exponent bits; clamped, so that the
        # scale and its inverse stay normal. Elements beyond 2, where the clamp acts, and subnormal ones, which some
        # matrix units take for nothing, become 0: the residual accounts for them.
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
        exponent = tl.minimum(tl.maximum(exponent, 64), 190)
        scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    t *= scale
    low = t.to(low_ptr.dtype.element_ty)
    if SCALED:
        low = normal_or_zero(low)
    tl.store(low_ptr + row * PADDED + d, low, d < PADDED)
    back = low.to(tl.float32)
    unit = 1.0 / (scale * tl.load(tau_ptr))
    tl.store(terms_ptr + row * 3, unit)
    tl.store(terms_ptr + row * 3 + 1, tl.sqrt(tl.sum((t - back) * (t - back), 0)) * slack * unit)
    tl.store(terms_ptr + row * 3 + 2, tl.sqrt(tl.sum(back * back, 0)) * slack * unit)


@triton.jit
def _bound(pre, b, u, v, unit, R, Q):
    # The last two terms: rounding of the product to float16 (relative 2^-11, or 2^-25 where subnormal), with room for
    # the float32 steps that lead here. |product| is at most |pre| + |b|. Infinity times zero: nothing is known.
    e = R * u + Q * v + 0.00049 * (tl.abs(pre) + tl.abs(b)) + 1.2e-7 * unit
    return tl.where(e == e, e, float("inf"))


@triton.jit
def _limits(maxima_ptr, bucket_terms_ptr, row, bucket, buckets, unit, R, Q, EXACT: tl.constexpr):
    """Lower and upper limit of the largest pre-activation of each bucket."""
    inside = bucket < buckets
    best = tl.load(maxima_ptr + row * buckets + bucket, inside, other=float("-inf"))
    if EXACT:
        u = tl.load(bucket_terms_ptr + bucket, inside, other=0.0)
        v = tl.load(bucket_terms_ptr + buckets + bucket, inside, other=0.0)
        b = tl.load(bucket_terms_ptr + 2 * buckets + bucket, inside, other=0.0)
        e = _bound(best, b, u, v, unit, R, Q)
        e = tl.where(best > float("-inf"), e, 0.0)
        return best - e, best + e
    return best, best


@triton.jit
def _at_least(x, key):
    """1 for elements whose bits are at least ``key`` (negative ones count as 0)."""
    return (tl.where(x > 0, x, 0.0).to(tl.int32, bitcast=True) >= key).to(tl.int32)


@triton.jit
def find_buckets_kernel(
    maxima_ptr,  # [rows, buckets]
    terms_ptr,  # [rows, 3]
    bucket_terms_ptr,  # [3, buckets]
    threshold_ptr,  # [buckets] or None
    hits_ptr,
    found_ptr,
    floors_ptr,
    buckets,
    k,
    TOPK: tl.constexpr,
    EXACT: tl.constexpr,
    ONCE: tl.constexpr,  # one block holds all buckets
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.load(terms_ptr + row * 3)
    R = tl.load(terms_ptr + row * 3 + 1)
    Q = tl.load(terms_ptr + row * 3 + 2)
    floor = 0.0
    if TOPK:
        first, _ = _limits(maxima_ptr, bucket_terms_ptr, row, tl.arange(0, BLOCK), buckets, unit, R, Q, EXACT)
        # Positive floats order as their bits do: build the k-th largest from the highest bit down (0: fewer than k
        # positive).
        key = 0
        for i in range(31):
            trial = key | (1 << (30 - i))
            above = _at_least(first, trial)
            if not ONCE:
                for start in range(BLOCK, buckets, BLOCK):
                    bucket = start + tl.arange(0, BLOCK)
                    low, _ = _limits(maxima_ptr, bucket_terms_ptr, row, bucket, buckets, unit, R, Q, EXACT)
                    above += _at_least(low, trial)
            key = tl.where(tl.sum(above, 0) >= k, trial, key)
        floor = tl.cast(key, tl.float32, bitcast=True)
    tl.store(floors_ptr + row, floor)
    total = 0
    for start in range(0, buckets, BLOCK):
        bucket = start + tl.arange(0, BLOCK)
        _, high = _limits(maxima_ptr, bucket_terms_ptr, row, bucket, buckets, unit, R, Q, EXACT)
        least = 0.0
        if threshold_ptr is not None:
            least = tl.load(threshold_ptr + bucket, bucket < buckets, other=0.0)
        hit = (high > least) & (high >= floor)
        place = total + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(hits_ptr + row * buckets + place, bucket, hit)
        total += tl.sum(hit.to(tl.int32), 0)
    tl.store(found_ptr + row, total)


@triton.jit
def gather_kernel(
    chunk_ptr,  # [rows, latents]
    bias_ptr,
    terms_ptr,
    latent_terms_ptr,  # [2, latents]
    threshold_ptr,  # [latents] or None
    hits_ptr,
    found_ptr,
    floors_ptr,
    counts_ptr,
    offsets_ptr,
    values_ptr,
    indices_ptr,
    latents,
    capacity,
    EXACT: tl.constexpr,
    WRITE: tl.constexpr,
    SLOTS: tl.constexpr,
    BUCKET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.load(terms_ptr + row * 3)
    R = tl.load(terms_ptr + row * 3 + 1)
    Q = tl.load(terms_ptr + row * 3 + 2)
    floor = tl.load(floors_ptr + row)
    found = tl.load(found_ptr + row)
    if WRITE:
        base = row * SLOTS
        end = base + SLOTS
        if offsets_ptr is not None:
            base = tl.load(offsets_ptr + row)
            end = base * 0 + capacity
    total = 0
    for start in range(0, found, BLOCK):
        i = start + tl.arange(0, BLOCK)
        bucket = tl.load(hits_ptr + row * (latents // BUCKET) + i, i < found, other=0)
        latent = tl.reshape(bucket[:, None] * BUCKET + tl.arange(0, BUCKET)[None, :], (BLOCK * BUCKET,))
        inside = tl.reshape((i < found)[:, None] & (tl.arange(0, BUCKET) < BUCKET)[None, :], (BLOCK * BUCKET,))
        product = tl.load(chunk_ptr + row * latents + latent, inside, other=0.0).to(tl.float32)
        b = tl.load(bias_ptr + latent, inside, other=float("-inf"))
        pre = product * unit + b
        high = pre
        if EXACT:
            u = tl.load(latent_terms_ptr + latent, inside, other=0.0)
            v = tl.load(latent_terms_ptr + latents + latent, inside, other=0.0)
            high = pre + tl.where(b > float("-inf"), _bound(pre, b, u, v, unit, R, Q), 0.0)
        least = 0.0
        if threshold_ptr is not None:
            least = tl.load(threshold_ptr + latent, inside, other=0.0)
        hit = (high > least) & (high >= floor) & inside
        if WRITE:
            place = base + total + tl.cumsum(hit.to(tl.int32), 0) - 1
            fits = hit & (place < end)
            tl.store(indices_ptr + place, latent, fits)
            tl.store(values_ptr + place, pre, fits)
        total += tl.sum(hit.to(tl.int32), 0)
    tl.store(counts_ptr + row, total)

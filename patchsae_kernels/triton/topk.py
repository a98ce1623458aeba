"""Candidates of top-k: a floor under every token's k-th largest pre-activation, and the latents that can pass it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch
from patchsae_kernels.triton.product import BUCKET

GATHERED = 64  # buckets of a step of the gather
MOST_STEPS = 12  # of it; more where more than twice the k largest can lie beyond
SEARCHED = 2048  # buckets that the search for the floor holds at once: 65,536 latents
LISTED = 512  # buckets of a step of the listing: eight a thread
ROUNDING = {torch.float16: 0.0, torch.bfloat16: 2.0**-8, torch.float32: 0.0}
"""How far the maxima of accumulators may be from those of the products as kept, relative to product and bias: twice the
unit roundoff, where the products are the answer. For float16, which only screens, the bound has it."""


def find_buckets(
    maxima: Tensor,
    terms: Tensor,
    bucket_terms: Tensor,
    k: int,
    dtype: torch.dtype,
    buckets: Tensor,
    found: Tensor,
    floors: Tensor,
) -> None:
    """List the buckets of every token that can hold one of its k largest latents.

    A token's floor is a lower bound of its k-th largest pre-activation: the k-th largest of the buckets' lower limits,
    for every bucket's largest latent is another latent. Nothing below the floor can be among the k largest. Limits are
    a bucket's maximum less and plus the bound (float16), or less and plus what rounding can have changed of it.

    Args:
        maxima: ``[rows, Sp / 32]`` float32. bucket_terms: of `pack.Packed`. dtype: of the products.
        buckets: int32 ``[rows, Sp / 32]``, written up to found. found: int32 ``[rows]``. floors: float32 ``[rows]``.
    """
    rows, width = maxima.shape
    once = width <= SEARCHED
    block = triton.next_power_of_2(width) if once else SEARCHED // 4
    launch(
        find_buckets_kernel,
        (rows,),
        maxima,
        terms,
        bucket_terms,
        buckets,
        found,
        floors,
        width,
        k,
        EXACT=dtype == torch.float16,
        ROUNDING=ROUNDING[dtype],
        ONCE=once,
        BLOCK=block,
        LISTED=min(LISTED, block),
        num_warps=2,  # 31 rounds, each with a sum over the program: the fewer warps meet, the better
        num_stages=1,
    )


def gather(
    chunk: Tensor,
    bias: Tensor,
    terms: Tensor,
    latent_terms: Tensor,
    buckets: Tensor,
    found: Tensor,
    floors: Tensor,
    values: Tensor,
    indices: Tensor,
    counts: Tensor,
) -> None:
    """Write the candidates of the buckets found to the token's slots, latents ascending.

    A candidate is positive and not below the token's floor (float16: can be, by the bound). Those beyond the slots are
    counted and not written. Of a token with far more buckets than the k largest can need none is written, and its count
    is more than its slots.

    Args:
        chunk: ``[rows, Sp]``. values: float32, indices: int32 ``[rows, slots]``. counts: int32 ``[rows]``, written.
    """
    rows, slots = values.shape
    launch(
        gather_kernel,
        (rows,),
        chunk,
        bias,
        terms,
        latent_terms,
        buckets,
        found,
        floors,
        values,
        indices,
        counts,
        chunk.shape[1],
        EXACT=chunk.dtype == torch.float16,
        SLOTS=slots,
        BUCKET=BUCKET,
        MOST=max(GATHERED * MOST_STEPS, slots // 2),
        BLOCK=GATHERED,
        num_warps=8,
        num_stages=1,
    )


@triton.jit
def _bound(pre, b, u, v, unit, R, Q):
    # The last two terms: rounding of the product to float16 (relative 2^-11, or 2^-25 where subnormal), with room for
    # the float32 steps that lead here. |product| is at most |pre| + |b|. Infinity times zero: nothing is known.
    e = R * u + Q * v + 0.00049 * (tl.abs(pre) + tl.abs(b)) + 1.2e-7 * unit
    return tl.where(e == e, e, float("inf"))


@triton.jit
def _limits(maxima_ptr, bucket_terms_ptr, row, bucket, width, unit, R, Q, EXACT: tl.constexpr, ROUNDING: tl.constexpr):
    """Lower and upper limit of the largest pre-activation of each bucket."""
    inside = bucket < width
    best = tl.load(maxima_ptr + row * width + bucket, inside, other=float("-inf"))
    e = tl.zeros_like(best)
    if EXACT or ROUNDING > 0:
        b = tl.load(bucket_terms_ptr + 2 * width + bucket, inside, other=0.0)
        if EXACT:
            u = tl.load(bucket_terms_ptr + bucket, inside, other=0.0)
            v = tl.load(bucket_terms_ptr + width + bucket, inside, other=0.0)
            e = _bound(best, b, u, v, unit, R, Q)
        else:
            e = ROUNDING * (tl.abs(best) + b)
        e = tl.where(best > float("-inf"), e, 0.0)
    return best - e, best + e


@triton.jit
def _at_least(x, key):
    """1 for elements whose bits are at least ``key`` (negative ones count as 0)."""
    return (tl.where(x > 0, x, 0.0).to(tl.int32, bitcast=True) >= key).to(tl.int32)


@triton.jit
def find_buckets_kernel(
    maxima_ptr,  # [rows, width]
    terms_ptr,  # [rows, 3]
    bucket_terms_ptr,  # [3, width]
    buckets_ptr,
    found_ptr,
    floors_ptr,
    width,
    k,
    EXACT: tl.constexpr,
    ROUNDING: tl.constexpr,
    ONCE: tl.constexpr,  # one block holds all buckets
    BLOCK: tl.constexpr,
    LISTED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.load(terms_ptr + row * 3)
    R = tl.load(terms_ptr + row * 3 + 1)
    Q = tl.load(terms_ptr + row * 3 + 2)
    first, _ = _limits(maxima_ptr, bucket_terms_ptr, row, tl.arange(0, BLOCK), width, unit, R, Q, EXACT, ROUNDING)
    # Positive floats order as their bits do: build the k-th largest from the highest bit down (0: fewer than k
    # positive).
    key = 0
    for i in range(31):
        trial = key | (1 << (30 - i))
        above = _at_least(first, trial)
        if not ONCE:
            for start in range(BLOCK, width, BLOCK):
                bucket = start + tl.arange(0, BLOCK)
                low, _ = _limits(maxima_ptr, bucket_terms_ptr, row, bucket, width, unit, R, Q, EXACT, ROUNDING)
                above += _at_least(low, trial)
        key = tl.where(tl.sum(above, 0) >= k, trial, key)
    floor = tl.cast(key, tl.float32, bitcast=True)
    tl.store(floors_ptr + row, floor)
    total = 0
    for start in range(0, width, LISTED):
        bucket = start + tl.arange(0, LISTED)
        _low, high = _limits(maxima_ptr, bucket_terms_ptr, row, bucket, width, unit, R, Q, EXACT, ROUNDING)
        hit = (high > 0) & (high >= floor)
        place = total + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(buckets_ptr + row * width + place, bucket, hit)
        total += tl.sum(hit.to(tl.int32), 0)
    tl.store(found_ptr + row, total)


@triton.jit
def gather_kernel(
    chunk_ptr,  # [rows, latents]
    bias_ptr,
    terms_ptr,
    latent_terms_ptr,  # [2, latents]
    buckets_ptr,  # [rows, latents / BUCKET]
    found_ptr,
    floors_ptr,
    values_ptr,  # [rows, SLOTS]
    indices_ptr,
    counts_ptr,
    latents,
    EXACT: tl.constexpr,
    SLOTS: tl.constexpr,
    BUCKET: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.load(terms_ptr + row * 3)
    R = tl.load(terms_ptr + row * 3 + 1)
    Q = tl.load(terms_ptr + row * 3 + 2)
    floor = tl.load(floors_ptr + row)
    found = tl.load(found_ptr + row)
    crowded = found > MOST
    total = tl.where(crowded, SLOTS + 1, 0)
    for start in range(0, tl.where(crowded, 0, found), BLOCK):
        i = start + tl.arange(0, BLOCK)
        bucket = tl.load(buckets_ptr + row * (latents // BUCKET) + i, i < found, other=0)
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
        hit = (high > 0) & (high >= floor) & inside
        place = total + tl.cumsum(hit.to(tl.int32), 0) - 1
        fits = hit & (place < SLOTS)
        tl.store(indices_ptr + row * SLOTS + place, latent, fits)
        tl.store(values_ptr + row * SLOTS + place, pre, fits)
        total += tl.sum(hit.to(tl.int32), 0)
    tl.store(counts_ptr + row, total)

"""Tokens for the product: centred, scaled and rounded, and what the exact bound needs to know of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch
from patchsae_kernels.triton.pack import normal_or_zero


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

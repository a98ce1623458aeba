"""The product of centred tokens with the dictionary's encoder rows, and the largest pre-activation of every bucket.

A *bucket* is 32 neighbouring latents. Both designs leave the same two things for one chunk of tokens: the products in
low precision ``[rows, S]``, and for every bucket the largest pre-activation among those products ``[rows, buckets]``
float32. Where products are the answer (bfloat16, float32) maxima are taken after rounding, so that what is found later
agrees with them to the bit; where products only screen (float16) the bound covers the rounding. Everything after that
looks at the maxima, 1/16 of the products' bytes, and touches only buckets that can hold something.

- ``fused_product``: one Triton kernel; the maxima are taken from the accumulators before the tile is written.
  A result does not depend on how many tokens there are: one tile configuration and one order of summation.
- ``library_product``: the vendor's product, then one pass over the chunk. At 4.8 TB/s that pass costs 20 ns a token of
  49,152 latents, beside 96 ns for the product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton import tuning
from patchsae_kernels.triton.launch import descriptor, launch

BUCKET = 32


def fused_product(low: Tensor, W_low: Tensor, scales: Tensor, bias: Tensor, chunk: Tensor, maxima: Tensor) -> None:
    """Write ``low @ W_low.T`` to ``chunk`` and the bucket maxima of ``scale * product + bias`` to ``maxima``.

    Args:
        low: ``[rows, Dp]`` float16, bfloat16 or float32, contiguous; Dp a multiple of 64.
        W_low: ``[Sp, Dp]``, same dtype; Sp a multiple of 32 (padding latents have a bias of -inf).
        scales: ``[rows]`` float32 (the first column of the token terms: any stride).
        bias: ``[Sp]`` float32.
        chunk: ``[rows, Sp]`` in low's dtype. maxima: ``[rows, Sp / 32]`` float32.
    """
    rows, depth = low.shape
    latents = W_low.shape[0]
    part = tuning.architecture(low.device)
    tile = tuning.product_tile(low.device, low.dtype)
    tiles = triton.cdiv(rows, tile.m) * triton.cdiv(latents, tile.n)
    boxed = part.descriptors
    launch(
        product_kernel,
        (min(tiles, part.programs),),
        descriptor(low, [tile.m, tile.k]) if boxed else low,
        descriptor(W_low, [tile.n, tile.k]) if boxed else W_low,
        descriptor(chunk, [tile.m, tile.n]) if boxed else chunk,
        scales,
        bias,
        maxima,
        rows,
        latents,
        scales.stride(0),
        DEPTH=depth,
        TILE_M=tile.m,
        TILE_N=tile.n,
        TILE_K=tile.k,
        GROUP=tile.group,
        PROGRAMS=part.programs,
        DESCRIPTORS=boxed,
        BUCKET=BUCKET,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def library_product(low: Tensor, W_low: Tensor, scales: Tensor, bias: Tensor, chunk: Tensor, maxima: Tensor) -> None:
    """The same by `torch.mm` and one pass over the chunk; a float32 product follows PyTorch's TF32 switch."""
    torch.mm(low, W_low.t(), out=chunk)
    rows, buckets = maxima.shape
    block = min(128, triton.next_power_of_2(buckets))
    launch(
        bucket_max_kernel,
        (rows, triton.cdiv(buckets, block)),
        chunk,
        scales,
        bias,
        maxima,
        buckets,
        scales.stride(0),
        BUCKET=BUCKET,
        BLOCK=block,
        num_warps=4,
    )


@triton.jit
def product_kernel(
    low,  # [rows, DEPTH]: a tensor descriptor, or a pointer where the part has no copy engine for them
    W,  # [latents, DEPTH], likewise
    chunk,  # [rows, latents], likewise
    scales_ptr,
    bias_ptr,  # [latents]
    maxima_ptr,  # [rows, latents / BUCKET]
    rows,
    latents,
    scale_stride,
    DEPTH: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BUCKET: tl.constexpr,
):
    # Persistent: flatten lets the loads of the next tile start while this one is written.
    across = tl.cdiv(latents, TILE_N)
    down = tl.cdiv(rows, TILE_M)
    buckets = latents // BUCKET
    for tile in tl.range(tl.program_id(0), across * down, PROGRAMS, flatten=DESCRIPTORS):
        # GROUP tiles of tokens walk down before the next tile of latents: they share its rows in the L2.
        band = tile // (GROUP * across)
        height = min(down - band * GROUP, GROUP)
        row = (band * GROUP + tile % (GROUP * across) % height) * TILE_M
        column = (tile % (GROUP * across) // height) * TILE_N
        m = row + tl.arange(0, TILE_M)
        n = column + tl.arange(0, TILE_N)
        acc = tl.zeros((TILE_M, TILE_N), tl.float32)
        if DESCRIPTORS:
            for k in range(0, DEPTH, TILE_K):
                acc = tl.dot(low.load([row, k]), W.load([column, k]).T, acc, input_precision="ieee")
            product = acc.to(chunk.dtype)
            chunk.store([row, column], product)
        else:
            depth = tl.arange(0, TILE_K)
            # Rows past the end repeat the last one, so that the loop carries no mask; they are not stored.
            a = low + tl.minimum(m, rows - 1)[:, None].to(tl.int64) * DEPTH + depth[None, :]
            b = W + tl.minimum(n, latents - 1)[None, :].to(tl.int64) * DEPTH + depth[:, None]
            for _k in range(0, DEPTH, TILE_K):
                acc = tl.dot(tl.load(a), tl.load(b), acc, input_precision="ieee")
                a += TILE_K
                b += TILE_K
            product = acc.to(chunk.dtype.element_ty)
            place = m[:, None].to(tl.int64) * latents + n[None, :]
            tl.store(chunk + place, product, (m < rows)[:, None] & (n < latents)[None, :])
        scale = tl.load(scales_ptr + m * scale_stride, m < rows, other=0.0)
        bias = tl.load(bias_ptr + n, n < latents, other=float("-inf"))
        # Rounding to float16 and back before the maxima makes ptxas wait for every wgmma (its warning C7514).
        exact = acc if product.dtype == tl.float16 else product.to(tl.float32)
        pre = exact * scale[:, None] + bias[None, :]
        best = tl.max(tl.reshape(pre, (TILE_M, TILE_N // BUCKET, BUCKET)), 2)
        bucket = column // BUCKET + tl.arange(0, TILE_N // BUCKET)
        place = m[:, None].to(tl.int64) * buckets + bucket[None, :]
        tl.store(maxima_ptr + place, best, (m < rows)[:, None] & (bucket < buckets)[None, :])


@triton.jit
def bucket_max_kernel(
    chunk_ptr,  # [rows, buckets * BUCKET]
    scales_ptr,
    bias_ptr,
    maxima_ptr,  # [rows, buckets]
    buckets,
    scale_stride,
    BUCKET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    bucket = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    latent = bucket[:, None] * BUCKET + tl.arange(0, BUCKET)[None, :]
    inside = bucket < buckets
    product = tl.load(chunk_ptr + row * buckets * BUCKET + latent, inside[:, None], other=0.0)
    bias = tl.load(bias_ptr + latent, inside[:, None], other=0.0)
    scale = tl.load(scales_ptr + row * scale_stride)
    best = tl.max(product.to(tl.float32) * scale + bias, 1)
    tl.store(maxima_ptr + row * buckets + bucket, best, inside)

"""The product of centred tokens with the dictionary's encoder rows, and what its tiles tell before they are gone.

A *bucket* is 32 neighbouring latents. Two things can be taken from the accumulators of a tile:

- **hits**: one 32-bit word a token and bucket, bit i of it for latent i of the bucket. ReLU and JumpReLU need no more:
  where the product only screens (float16) a bit says that the latent *can* be active, and nothing else of the product
  is kept; where the product is the answer (bfloat16, float32) it says that the latent *is* active, and the products are
  written as well, to be read at the hits.
- **maxima**: the largest pre-activation of every bucket, beside the products. Top-k needs them: how large a latent has
  to be is known only when the token's whole row is.

Everything after that looks at hits or maxima, 1/16 of the products' bytes, and touches only buckets that hold
something.

Here the tile is Triton's, and a result does not depend on how many tokens there are: one configuration and one order of
summation. `patchsae_kernels.triton.library` does the same with the vendor's product and a pass over what it wrote.

Hits by screening. Let p be the true pre-activation of a latent, b its bias and t >= 0 its threshold; a s the scaled
product from the accumulator (never rounded to float16), and q what the tile holds of a s + (b - t (1 - 2^-20)). With
the bound of `patchsae_kernels.triton.pack`, the largest u, v and |b| of the bucket, and e = 2^-22 for the roundings
that lead to q, p <= a s + b + R u + Q v and |q - (a s + b - t + 2^-20 t)| <= e (|q| + |b| + t). So where p > t

    q + R u + Q v + e |b| + e |q| > (2^-20 - e) t >= 0,

and q > -(R u + Q v + e |b|) (1 + 2^-20), whether q is negative or not; 2^-20 covers the roundings of that as well.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton import tuning
from patchsae_kernels.triton.launch import descriptor, launch

BUCKET = 32
SURELY = 1 - 2.0**-20
"""Of a threshold: what a pre-activation at it is above, after all roundings."""


def fused_hits(
    low: Tensor,
    W_low: Tensor,
    terms: Tensor,
    bias: Tensor,
    bounds: Tensor,
    hits: Tensor,
    chunk: Tensor | None,
) -> None:
    """Write the hits of ``low @ W_low.T``, and the products where there is a chunk for them.

    Args:
        low: ``[rows, Dp]`` float16 (screening), bfloat16 or float32, contiguous; Dp a multiple of 64.
        W_low: ``[Sp, Dp]``, same dtype; Sp a multiple of 32 (padding latents have a bias of -inf).
        terms: ``[rows, 3]`` float32, of `centre.centre`.
        bias: ``[Sp]`` float32, less `SURELY` times the threshold, if there is one; only read where products screen.
        bounds: what a product is compared with, float32: without a chunk the bucket terms ``[3, Sp / 32]`` of
            `pack.Packed`, with one the cutoffs ``[Sp]`` of `cutoffs.cutoffs`.
        hits: int32 ``[rows, Sp / 32]``, written. chunk: ``[rows, Sp]`` in low's dtype, written, or None.
    """
    _fused(low, W_low, terms, bias, bounds, chunk, hits, screens=chunk is None)


def fused_maxima(low: Tensor, W_low: Tensor, terms: Tensor, bias: Tensor, chunk: Tensor, maxima: Tensor) -> None:
    """Write ``low @ W_low.T`` to ``chunk`` and the bucket maxima of ``scale * product + bias`` to ``maxima``.

    Maxima are those of the accumulators, before the products are rounded to chunk's dtype.

    Args:
        chunk: ``[rows, Sp]`` in low's dtype. maxima: ``[rows, Sp / 32]`` float32. The others as for `fused_hits`.
    """
    _fused(low, W_low, terms, bias, None, chunk, maxima, screens=False)


def _fused(
    low: Tensor,
    W_low: Tensor,
    terms: Tensor,
    bias: Tensor,
    bounds: Tensor | None,
    chunk: Tensor | None,
    found: Tensor,
    screens: bool,
) -> None:
    rows, depth = low.shape
    latents = W_low.shape[0]
    part = tuning.architecture(low.device)
    tile = tuning.product_tile(low.device, low.dtype, stored=chunk is not None)
    tiles = triton.cdiv(rows, tile.m) * triton.cdiv(latents, tile.n)
    programs = min(tiles, part.multiprocessors * tile.resident)
    boxed = part.descriptors
    launch(
        product_kernel,
        (programs,),
        descriptor(low, [tile.m, tile.k]) if boxed else low,
        descriptor(W_low, [tile.n, tile.k]) if boxed else W_low,
        descriptor(chunk, [tile.m, tile.n]) if boxed and chunk is not None else chunk,
        terms,
        bias,
        bounds,
        found,
        rows,
        latents,
        programs,
        DEPTH=depth,
        TILE_M=tile.m,
        TILE_N=tile.n,
        TILE_K=tile.k,
        GROUP=tile.group,
        DESCRIPTORS=boxed,
        HITS=found.dtype == torch.int32,
        SCREENS=screens,
        BUCKET=BUCKET,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@triton.jit
def product_kernel(
    low,  # [rows, DEPTH]: a tensor descriptor, or a pointer where the part has no copy engine for them
    W,  # [latents, DEPTH], likewise
    chunk,  # [rows, latents], likewise, or None
    terms_ptr,  # [rows, 3]
    bias_ptr,  # [latents]
    bounds_ptr,  # of hits: cutoffs [latents], or bucket terms [3, latents / BUCKET]
    found_ptr,  # [rows, latents / BUCKET]: hits or maxima
    rows,
    latents,
    programs,
    DEPTH: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    HITS: tl.constexpr,
    SCREENS: tl.constexpr,
    BUCKET: tl.constexpr,
):
    # Persistent: flatten lets the loads of the next tile start while this one is written.
    across = tl.cdiv(latents, TILE_N)
    down = tl.cdiv(rows, TILE_M)
    buckets = latents // BUCKET
    for tile in tl.range(tl.program_id(0), across * down, programs, flatten=DESCRIPTORS):
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
            if chunk is not None:
                chunk.store([row, column], acc.to(chunk.dtype))
        else:
            depth = tl.arange(0, TILE_K)
            # Rows past the end repeat the last one, so that the loop carries no mask; they are not stored.
            a = low + tl.minimum(m, rows - 1)[:, None].to(tl.int64) * DEPTH + depth[None, :]
            b = W + tl.minimum(n, latents - 1)[None, :].to(tl.int64) * DEPTH + depth[:, None]
            for _k in range(0, DEPTH, TILE_K):
                acc = tl.dot(tl.load(a), tl.load(b), acc, input_precision="ieee")
                a += TILE_K
                b += TILE_K
            if chunk is not None:
                place = m[:, None].to(tl.int64) * latents + n[None, :]
                tl.store(chunk + place, acc.to(chunk.dtype.element_ty), (m < rows)[:, None] & (n < latents)[None, :])
        bucket = column // BUCKET + tl.arange(0, TILE_N // BUCKET)
        if HITS and not SCREENS:
            above = acc - tl.load(bounds_ptr + n, n < latents, other=float("inf"))[None, :]
            found = words(tl.reshape(above, (TILE_M, TILE_N // BUCKET, BUCKET)) > 0, BUCKET)
        else:
            scale = tl.load(terms_ptr + m * 3, m < rows, other=0.0)
            bias = tl.load(bias_ptr + n, n < latents, other=float("-inf"))
            pre = acc * scale[:, None] + bias[None, :]
            grouped = tl.reshape(pre, (TILE_M, TILE_N // BUCKET, BUCKET))
            if HITS:
                slack = _slack(terms_ptr, bounds_ptr, m, bucket, rows, buckets)
                found = words(grouped > -slack[:, :, None], BUCKET)
            else:
                found = tl.max(grouped, 2)
        place = m[:, None].to(tl.int64) * buckets + bucket[None, :]
        tl.store(found_ptr + place, found, (m < rows)[:, None] & (bucket < buckets)[None, :])


@triton.jit
def _slack(terms_ptr, bucket_terms_ptr, m, bucket, rows, buckets):
    """How far below its threshold a latent of each token and bucket can be screened and yet be active."""
    R = tl.load(terms_ptr + m * 3 + 1, m < rows, other=0.0)[:, None]
    Q = tl.load(terms_ptr + m * 3 + 2, m < rows, other=0.0)[:, None]
    u = tl.load(bucket_terms_ptr + bucket, bucket < buckets, other=0.0)[None, :]
    v = tl.load(bucket_terms_ptr + buckets + bucket, bucket < buckets, other=0.0)[None, :]
    b = tl.load(bucket_terms_ptr + 2 * buckets + bucket, bucket < buckets, other=0.0)[None, :]
    slack = (R * u + Q * v + 2.0**-22 * b) * (1 + 2.0**-20)
    return tl.where(slack == slack, slack, float("inf"))  # infinity times zero: nothing is known


@triton.jit
def words(hit, BUCKET: tl.constexpr):
    """Bits ``[M, buckets, BUCKET]`` as words ``[M, buckets]``: what is added is disjoint, so the order is free."""
    return tl.sum(tl.where(hit, 1 << tl.arange(0, BUCKET)[None, None, :], 0), 2)

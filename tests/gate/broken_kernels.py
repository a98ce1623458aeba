"""Kernels that the gate has to refuse, one for each reason, and one that it has to let through."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch


def product(a: Tensor, b: Tensor, c: Tensor, **options: int) -> None:
    """``a @ b.T`` for one tile; with num_stages = 8 the tiles in flight are more than any part can hold."""
    tile_m, tile_n, depth = *c.shape, a.shape[1]
    launch(product_kernel, (1,), a, b, c, depth, TILE_M=tile_m, TILE_N=tile_n, TILE_K=64, **options)


def rounded_maxima(a: Tensor, b: Tensor, maxima: Tensor, **options: int) -> None:
    """Maxima over a product that was rounded and widened again.

    In float16 ptxas then waits for every wgmma; bfloat16 numbers it converts one by one.
    """
    tile_m, tile_n, depth = a.shape[0], b.shape[0], a.shape[1]
    tiles = {"TILE_M": tile_m, "TILE_N": tile_n, "TILE_K": 64}
    launch(rounded_maxima_kernel, (1,), a, b, maxima, depth, **tiles, **options)


def crowded(x: Tensor, y: Tensor) -> None:
    """More live values than a thread has registers."""
    launch(crowded_kernel, (1,), x, y, BLOCK=x.numel(), num_warps=4)


def unknown_name(x: Tensor) -> None:
    launch(unknown_name_kernel, (1,), x, num_warps=4)


def tall(x: Tensor) -> None:
    """A grid whose second axis is longer than CUDA takes."""
    launch(crowded_kernel, (1, 65_536), x, x, BLOCK=16)


def handed_over(x: Tensor, barrier: bool) -> None:
    """A lane loads what another lane of its program has stored."""
    launch(handed_over_kernel, (1,), x, BARRIER=barrier, BLOCK=x.numel(), num_warps=4)


def handed_on(x: Tensor, steps: int, barrier: bool) -> None:
    """The same from one step of a loop to the next, through a pointer that the loop carries."""
    launch(handed_on_kernel, (1,), x, steps, BARRIER=barrier, BLOCK=256, num_warps=4)


def in_place(x: Tensor) -> None:
    """Loads before it stores, which is no reading back."""
    launch(in_place_kernel, (1,), x, BLOCK=x.numel(), num_warps=4)


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, depth, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):
    m, n, k = tl.arange(0, TILE_M), tl.arange(0, TILE_N), tl.arange(0, TILE_K)
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, depth, TILE_K):
        a = tl.load(a_ptr + m[:, None] * depth + start + k[None, :])
        b = tl.load(b_ptr + n[None, :] * depth + start + k[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + m[:, None] * TILE_N + n[None, :], acc)


@triton.jit
def rounded_maxima_kernel(
    a_ptr, b_ptr, maxima_ptr, depth, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr
):
    m, n, k = tl.arange(0, TILE_M), tl.arange(0, TILE_N), tl.arange(0, TILE_K)
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, depth, TILE_K):
        a = tl.load(a_ptr + m[:, None] * depth + start + k[None, :])
        b = tl.load(b_ptr + n[None, :] * depth + start + k[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(maxima_ptr + m, tl.max(acc.to(a_ptr.dtype.element_ty).to(tl.float32) * 2.0 + 1.0, 1))


@triton.jit
def crowded_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    total = tl.sum(x, 0)
    tl.store(y_ptr + at, x / total)  # every x is live until the sum is known


@triton.jit
def unknown_name_kernel(x_ptr):
    tl.store(x_ptr, no_such_function(x_ptr))  # noqa: F821


@triton.jit
def handed_over_kernel(x_ptr, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, at.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + BLOCK + at, tl.load(x_ptr + BLOCK - 1 - at))


@triton.jit
def handed_on_kernel(x_ptr, steps, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    for _ in range(steps):
        x = tl.load(x_ptr + at)
        x_ptr += BLOCK
        tl.store(x_ptr + BLOCK - 1 - at, x)
        if BARRIER:
            tl.debug_barrier()


@triton.jit
def in_place_kernel(x_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.load(x_ptr + at) + 1)

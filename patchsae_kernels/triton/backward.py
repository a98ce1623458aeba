"""Gradients of encode and decode on a GPU: one traversal of the latents, sums in registers, no atomics.

With g_n the gradient by the reconstruction of token n, an entry p of token n and latent s has dz_p = <g_n, W_dec[s]>
plus a constant, and dW_dec[s] = sum h_p g_n, dW_enc[:, s] = sum dz_p (x_n - b_dec), db_enc[s] = sum dz_p. One program
is one latent, or one segment of a long one; it holds W_dec[s] and both sums in registers and reads two rows an entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.calls import DecodeBackwardCall, DecodeCall, EncodeBackwardCall
from patchsae_kernels.triton.decode import decode
from patchsae_kernels.triton.latent_major import SEGMENT, TOKEN_LIMIT, ByLatent, sort_by_latent
from patchsae_kernels.triton.launch import launch

WIDEST = 4096
"""D up to which a row and its sums fit the registers of a program."""


@dataclass(frozen=True)
class GradientLaunch:
    """How the traversal is started.

    Attributes:
        block_d: elements of a row, rounded up to a power of two.
        rows: entries loaded together.
        num_warps: warps a program.
    """

    block_d: int
    rows: int
    num_warps: int


def gradient_launch(width: int) -> GradientLaunch:
    """8 elements of a row a thread: with 4 entries, two rows of each are 64 registers, the sums and W_dec[s] 24."""
    block = max(16, triton.next_power_of_2(width))
    return GradientLaunch(block, 4, min(16, max(1, block // 256)))


def serves(call: EncodeBackwardCall | DecodeBackwardCall) -> bool:
    """Rows that fit the registers."""
    return call.is_float32 and 0 < call.width <= WIDEST and call.indptr.shape[0] - 1 <= TOKEN_LIMIT


def encode_backward(call: EncodeBackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `patchsae_kernels.reference.encode_backward`. Reads nothing back."""
    x, b_dec, grad_values, indices, indptr = call.x, call.b_dec, call.grad_values, call.indices, call.indptr
    rows = call.W_enc.t().contiguous()
    by_latent = sort_by_latent(indices, indptr, rows.shape[0])
    grad_rows, grad_b = torch.empty_like(rows), rows.new_empty(rows.shape[0])
    gradients(
        by_latent,
        rows.shape[1],
        dots=grad_values[by_latent.order],
        x=x.contiguous(),
        shift=b_dec.contiguous(),
        sum_x=grad_rows,
        sum_dots=grad_b,
    )
    if not call.with_x:
        return x.new_empty(0, x.shape[1]), grad_rows.t(), grad_b, -torch.mv(rows.t(), grad_b)
    grad_x = decode(DecodeCall(grad_values, indices, indptr, rows, torch.zeros_like(b_dec)))
    return grad_x.to(x.dtype), grad_rows.t(), grad_b, -grad_x.sum(0)


def decode_backward(call: DecodeBackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `patchsae_kernels.reference.decode_backward`. Reads nothing back."""
    values, grad_y, W_dec = call.values, call.grad_y.contiguous(), call.W_dec.contiguous()
    by_latent = sort_by_latent(call.indices, call.indptr, W_dec.shape[0])
    grad_W, grad_values = torch.empty_like(W_dec), torch.empty_like(values)
    gradients(
        by_latent,
        W_dec.shape[1],
        g=grad_y,
        W=W_dec,
        values=values[by_latent.order],
        sum_g=grad_W,
        grad_values=grad_values,
    )
    return grad_values, grad_W, grad_y.sum(0)


def gradients(
    by_latent: ByLatent,
    width: int,
    *,
    dots: Tensor | None = None,
    g: Tensor | None = None,
    scale: Tensor | None = None,
    W: Tensor | None = None,
    constant: float = 0.0,
    values: Tensor | None = None,
    sum_g: Tensor | None = None,
    grad_values: Tensor | None = None,
    x: Tensor | None = None,
    shift: Tensor | None = None,
    sum_x: Tensor | None = None,
    sum_dots: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """One traversal of the latents; contiguous, float32 where nothing else is said. What is None is left out.

    Without ``dots``, the dot product of an entry is ``scale[token] * <g[token], W[latent]> + constant``.

    Args:
        dots: ``[nnz]``, sorted by latent, given instead of ``g``. values: ``[nnz]``, sorted by latent.
        g: ``[N, width]`` of any floating dtype. scale: ``[N]``, 1 if None. W: ``[S, width]``.
        sum_g: ``[S, width]``, becomes the sum of ``values * scale[token] * g[token]`` over each latent's entries.
        grad_values: ``[nnz]``, becomes the dot products in the order of the CSR.
        x: ``[N, width]`` of any floating dtype. shift: ``[width]``.
        sum_x: ``[S, width]``, becomes the sum of ``dot * (x[token] - shift)``. sum_dots: ``[S]``, that of the dots.
        accumulate: continue the sums that are there.
    """
    latents, extras = by_latent.extra_ends.shape[0], by_latent.extra_latents.shape[0]
    config = gradient_launch(width)
    some = by_latent.order if sum_g is None and sum_x is None else sum_g if sum_g is not None else sum_x
    assert some is not None
    partial = [None if total is None else some.new_empty(extras, width) for total in (sum_g, sum_x)]
    partial_dots = None if sum_dots is None else some.new_empty(extras)
    pattern = (by_latent.indptr, by_latent.extra_ends, by_latent.extra_latents)
    launch(
        latent_gradients_kernel,
        (extras + latents,),
        *(*pattern, by_latent.tokens, by_latent.order),
        *(dots, g, scale, W, constant, values, x, shift),
        *(sum_g, sum_x, sum_dots, grad_values, *partial, partial_dots),
        *(extras, latents),
        D=width,
        SEGMENT=SEGMENT,
        ROWS=config.rows,
        BLOCK_D=config.block_d,
        ACCUMULATE=accumulate,
        num_warps=config.num_warps,
        num_stages=1,
    )
    launch(
        latent_gradients_join_kernel,
        (extras,),
        *(*pattern[1:], *partial, partial_dots, sum_g, sum_x, sum_dots, extras, latents),
        D=width,
        ROWS=config.rows,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        num_stages=1,
    )


@triton.jit
def latent_gradients_kernel(
    indptr,
    extra_ends,
    extra_latents,
    tokens,
    order,
    dots,
    g,
    scale,
    W,
    constant,
    values,
    x,
    shift,
    sum_g,
    sum_x,
    sum_dots,
    grad_values,
    partial_g,
    partial_x,
    partial_dots,
    extras,
    S,
    D: tl.constexpr,
    SEGMENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """One program is one segment of a latent; the extra ones, which are long, come first.

    The gathers: two rows of 3 KB an entry (D = 768), 23 GB for 3.76 M entries: 4.2 ms at the L2's 5.5 TB/s. The rows
    lie in 155 MB, of which a third stays in an L2 of 50 MB, so 15 GB come from memory, 3.2 ms at 4.8 TB/s, beside that.
    Reading W_dec and writing both gradients is 453 MB, 0.1 ms. Issuing instructions: fewer than 500 a step of four
    entries and warp, below 2 ms. Four programs of 128 threads and 128 registers (sm_90) have up to 96 KB in flight on a
    multiprocessor, where bandwidth times latency asks for 42 KB (42 bytes/ns, 1 us loaded). Rows in bfloat16 halve the
    gathers; issuing is then what bounds it, 2 ms.
    """
    program = tl.program_id(0)
    latent = (program - extras).to(tl.int64)
    segment = latent * 0
    if program < extras:
        latent = tl.load(extra_latents + program)
        if latent >= S:
            return
        before = tl.load(extra_ends + latent - 1, mask=latent > 0, other=0)
        segment = program - before + 1
    begin = tl.load(indptr + latent) + segment * SEGMENT
    end = tl.minimum(tl.load(indptr + latent + 1), begin + SEGMENT)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    total_g = tl.zeros([BLOCK_D], tl.float32)
    total_x = tl.zeros([BLOCK_D], tl.float32)
    total_dots = tl.zeros([ROWS], tl.float32)
    if W is not None:
        weight = tl.load(W + latent * D + columns, mask=inside, other=0.0)
    if shift is not None:
        origin = tl.load(shift + columns, mask=inside, other=0.0)
    for start in range(begin, end, ROWS):
        at = start + tl.arange(0, ROWS)
        there = at < end
        token = tl.load(tokens + at, mask=there, other=0).to(tl.int64)
        place = token[:, None] * D + columns[None, :]
        mask = there[:, None] & inside[None, :]
        if g is not None:
            rows = tl.load(g + place, mask=mask, other=0.0).to(tl.float32)
        if x is not None:
            inputs = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            if shift is not None:
                inputs -= origin[None, :]
        factor = tl.where(there, 1.0, 0.0)
        if scale is not None:
            factor = tl.load(scale + token, mask=there, other=0.0)
        if g is not None:
            dot = tl.where(there, factor * tl.sum(rows * weight[None, :], 1) + constant, 0.0)
        else:
            dot = tl.load(dots + at, mask=there, other=0.0)
        if sum_g is not None:
            value = tl.load(values + at, mask=there, other=0.0)
            total_g += tl.sum((value * factor)[:, None] * rows, 0)
        if sum_x is not None:
            total_x += tl.sum(dot[:, None] * inputs, 0)
        if grad_values is not None:
            tl.store(grad_values + tl.load(order + at, mask=there, other=0), dot, mask=there)
        total_dots += dot
    if program < extras:
        row = program.to(tl.int64) * D + columns
        if sum_g is not None:
            tl.store(partial_g + row, total_g, mask=inside)
        if sum_x is not None:
            tl.store(partial_x + row, total_x, mask=inside)
        if sum_dots is not None:
            tl.store(partial_dots + program, tl.sum(total_dots, 0))
    else:
        row = latent * D + columns
        if sum_g is not None:
            _put(sum_g + row, total_g, inside, ACCUMULATE)
        if sum_x is not None:
            _put(sum_x + row, total_x, inside, ACCUMULATE)
        if sum_dots is not None:
            _put(sum_dots + latent, tl.sum(total_dots, 0), None, ACCUMULATE)


@triton.jit
def latent_gradients_join_kernel(
    extra_ends,
    extra_latents,
    partial_g,
    partial_x,
    partial_dots,
    sum_g,
    sum_x,
    sum_dots,
    extras,
    S,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the extra segments of a latent to its sums, from first to last; one program is a latent's first extra one.

    Memory: at most 6 KB an extra segment, 45 MB of 3.76 M entries if all of them were extra: 10 us. A latent that is
    active on all of 25,216 tokens has 49, which one program adds in 13 steps: 15 us.
    """
    first = tl.program_id(0)
    latent = tl.load(extra_latents + first)
    before = tl.load(extra_latents + first - 1, mask=first > 0, other=-1)
    if (latent >= S) | (latent == before):
        return
    end = tl.load(extra_ends + latent)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    total_g = tl.zeros([BLOCK_D], tl.float32)
    total_x = tl.zeros([BLOCK_D], tl.float32)
    total_dots = tl.zeros([ROWS], tl.float32)
    for start in range(first, end, ROWS):
        at = (start + tl.arange(0, ROWS)).to(tl.int64)
        there = at < end
        mask = there[:, None] & inside[None, :]
        place = at[:, None] * D + columns[None, :]
        if sum_g is not None:
            total_g += tl.sum(tl.load(partial_g + place, mask=mask, other=0.0), 0)
        if sum_x is not None:
            total_x += tl.sum(tl.load(partial_x + place, mask=mask, other=0.0), 0)
        if sum_dots is not None:
            total_dots += tl.load(partial_dots + at, mask=there, other=0.0)
    row = latent * D + columns
    if sum_g is not None:
        _put(sum_g + row, total_g, inside, True)
    if sum_x is not None:
        _put(sum_x + row, total_x, inside, True)
    if sum_dots is not None:
        _put(sum_dots + latent, tl.sum(total_dots, 0), None, True)


@triton.jit
def _put(place, total, mask, ADD: tl.constexpr):
    """Store, or add to what is there; the latent's own program is the only one that does."""
    if ADD:
        total += tl.load(place, mask=mask)
    tl.store(place, total, mask=mask)

"""Adam on a GPU: one pass over parameter, gradient and moments, nothing beside them.

What bounds it: memory. 28 bytes an element (gradient read, the other three read and written): 1.06 GB for one of the
paper's matrices, 0.22 ms at 4.8 TB/s, 0.44 ms a step. The two sums of a dictionary row (the gradient's component along
it, its new norm) stay in the registers of the one program that has the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels import reference_training
from patchsae_kernels.triton.launch import launch

WIDEST = 8192
"""D up to which a row and its three companions fit the registers of a program."""
BLOCK = 1024
"""Elements of a program where rows do not matter: 8 a thread, 16 KB in flight."""


def adam_step_(
    p: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_rows: bool,
) -> None:
    """See `patchsae_kernels.reference_training.adam_step_`. Reads nothing back.

    Served in place: float32 of one or two dimensions whose rows, or without ``unit_rows`` whose columns, are
    contiguous. A gradient in another layout than the parameter's is copied first.
    """
    state = [_as_matrix(t) for t in (p, exp_avg, exp_avg_sq)]
    by_column = not unit_rows and not all(map(_has_rows, state))
    if by_column:
        state = [t.t() for t in state]
    float32 = all(t.dtype == torch.float32 for t in (p, grad, exp_avg, exp_avg_sq))
    if not float32 or not all(map(_has_rows, state)) or (unit_rows and p.shape[1] > WIDEST):
        reference_training.adam_step_(p, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, unit_rows)
        return
    rows = _as_matrix(grad).t() if by_column else _as_matrix(grad)
    tensors = [state[0], rows if _has_rows(rows) else rows.contiguous(), *state[1:]]
    if not unit_rows and all(t.is_contiguous() for t in tensors):
        tensors = [t.view(1, -1) for t in tensors]
    constants = (1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, eps, lr / (1 - beta1**step))
    _update(tensors, constants, unit_rows)
    for changed in (p, exp_avg, exp_avg_sq):  # written behind autograd's back; prepared weights go by the version
        torch.autograd.graph.increment_version(changed)


def _update(tensors: list[Tensor], constants: tuple[float, ...], unit_rows: bool) -> None:
    rows, width = tensors[0].shape
    block = max(16, triton.next_power_of_2(width)) if unit_rows else BLOCK
    blocks = 1 if unit_rows else triton.cdiv(width, block)
    launch(
        adam_kernel,
        (rows * blocks,),
        *tensors,
        *(t.stride(0) for t in tensors),
        width,
        blocks,
        *constants,
        BLOCK=block,
        UNIT_ROWS=unit_rows,
        num_warps=min(16, max(1, block // 256)),
        num_stages=1,
    )


@triton.jit
def adam_kernel(
    p,
    grad,
    exp_avg,
    exp_avg_sq,
    p_stride,
    grad_stride,
    exp_avg_stride,
    exp_avg_sq_stride,
    width,
    blocks,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    correction2,
    eps,
    rate,
    BLOCK: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
):
    """One program is a row, or a block of one where rows do not matter."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(p + row * p_stride + column, mask=inside, other=0.0)
    g = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0)
    m = tl.load(exp_avg + row * exp_avg_stride + column, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + row * exp_avg_sq_stride + column, mask=inside, other=0.0)
    if UNIT_ROWS:
        g -= tl.sum(g * value, 0) * value
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    change = tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), correction2) + eps)
    value -= rate * tl.where(inside, change, 0.0)  # with eps = 0 it is 0 / 0 outside
    if UNIT_ROWS:
        value = tl.div_rn(value, tl.sqrt_rn(tl.sum(value * value, 0)))
    tl.store(p + row * p_stride + column, value, mask=inside)
    tl.store(exp_avg + row * exp_avg_stride + column, m, mask=inside)
    tl.store(exp_avg_sq + row * exp_avg_sq_stride + column, v, mask=inside)


def _as_matrix(t: Tensor) -> Tensor:
    return t if t.dim() == 2 else t.reshape(1, -1) if t.is_contiguous() else t.unsqueeze(0)


def _has_rows(t: Tensor) -> bool:
    """A matrix with contiguous rows, no two of which share memory as those of an expanded tensor do."""
    return t.dim() == 2 and (t.shape[1] <= 1 or t.stride(1) == 1) and (t.shape[0] <= 1 or t.stride(0) >= t.shape[1])

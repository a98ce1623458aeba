"""Adam on the CPU: one pass over parameter, gradient and moments, nothing beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import reference
from patchsae_kernels.cpu.extension import native


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
    seed: int = 0,
) -> None:
    """See `patchsae_kernels.reference.adam_step_`.

    Served in place: float32 of one or two dimensions whose rows, or without ``unit_rows`` whose columns, are
    contiguous. A gradient in another layout than the parameter's is copied first.
    """
    state = [_as_matrix(t) for t in (p, exp_avg, exp_avg_sq)]
    by_column = not unit_rows and not all(map(_has_rows, state))
    if by_column:
        state = [t.t() for t in state]
    if not all(map(_has_rows, state)) or any(t.dtype != torch.float32 for t in (p, grad, exp_avg, exp_avg_sq)):
        reference.adam_step_(p, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, unit_rows, seed)
        return
    rows = _as_matrix(grad).t() if by_column else _as_matrix(grad)
    tensors = [state[0], rows if _has_rows(rows) else rows.contiguous(), *state[1:]]
    native.adam(
        *(number for t in tensors for number in (t.data_ptr(), t.stride(0))),
        *rows.shape,
        step,
        lr,
        beta1,
        beta2,
        eps,
        unit_rows,
        torch.get_num_threads(),
    )
    for changed in (p, exp_avg, exp_avg_sq):  # written behind autograd's back; prepared weights go by the version
        torch.autograd.graph.increment_version(changed)


def _as_matrix(t: Tensor) -> Tensor:
    return t if t.dim() == 2 else t.reshape(1, -1) if t.is_contiguous() else t.unsqueeze(0)


def _has_rows(t: Tensor) -> bool:
    """A matrix with contiguous rows, no two of which share memory as those of an expanded tensor do."""
    return t.dim() == 2 and (t.shape[1] <= 1 or t.stride(1) == 1) and (t.shape[0] <= 1 or t.stride(0) >= t.shape[1])

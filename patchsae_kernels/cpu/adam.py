"""Adam on the CPU: one pass over parameter, gradient and moments, nothing beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels.calls import AdamCall
from patchsae_kernels.cpu.extension import native


def serves(call: AdamCall) -> bool:
    """In place: float32 of one or two dimensions whose rows, or without ``unit_rows`` whose columns, are contiguous."""
    if any(t.dtype != torch.float32 for t in (*call.state, call.grad)):
        return False
    return _by_row(call) or (not call.unit_rows and all(_has_rows(_as_matrix(t).t()) for t in call.state))


def adam_step_(call: AdamCall) -> None:
    """See `patchsae_kernels.reference.adam_step_`. A gradient in another layout than the parameter's is copied."""
    p, exp_avg, exp_avg_sq, grad = (_as_matrix(t) for t in (*call.state, call.grad))
    if not _by_row(call):
        p, exp_avg, exp_avg_sq, grad = p.t(), exp_avg.t(), exp_avg_sq.t(), grad.t()
    tensors = (p, grad if _has_rows(grad) else grad.contiguous(), exp_avg, exp_avg_sq)
    native.adam(
        *(number for t in tensors for number in (t.data_ptr(), t.stride(0))),
        *p.shape,
        call.step,
        call.lr,
        call.beta1,
        call.beta2,
        call.eps,
        call.unit_rows,
        torch.get_num_threads(),
    )
    for changed in call.state:  # written behind autograd's back; prepared weights go by the version
        torch.autograd.graph.increment_version(changed)


def _by_row(call: AdamCall) -> bool:
    return all(t.is_contiguous() or _has_rows(_as_matrix(t)) for t in call.state)


def _as_matrix(t: Tensor) -> Tensor:
    return t if t.dim() == 2 else t.reshape(1, -1) if t.is_contiguous() else t.unsqueeze(0)


def _has_rows(t: Tensor) -> bool:
    """A matrix with contiguous rows, no two of which share memory as those of an expanded tensor do."""
    return t.dim() == 2 and (t.shape[1] <= 1 or t.stride(1) == 1) and (t.shape[0] <= 1 or t.stride(0) >= t.shape[1])

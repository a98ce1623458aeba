"""Latents that were chosen elsewhere, as functions of the encoder's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchsae_kernels.latents import SparseLatents


def attached(z: SparseLatents, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> SparseLatents:
    """``z``, which an encode of ``x`` has found, differentiable once in the weights as that encode is; x is data.

    Args:
        z: latents ``(N, S)``. x: ``[N, D]``. W_enc, b_enc, b_dec: ``[D, S]``, ``[S]``, ``[D]``.
    """
    return z.with_values(_Attached.apply(z.values, z.indices, z.indptr, x, W_enc, b_enc, b_dec))


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        indices: Tensor,
        indptr: Tensor,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(indices, indptr, x, W_enc, b_dec)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, *grads = torch.ops.patchsae.encode_backward(grad.contiguous(), *ctx.saved_tensors, False)
        return None, None, None, None, *grads

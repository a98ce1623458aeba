"""A table over latents, looked up for every entry of sparse latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchsae_kernels.parts import add_in_order_


def per_latent(table: Tensor, indices: Tensor) -> Tensor:
    """``table[indices]`` ``[nnz]`` of a table ``[S]``, differentiable in the table.

    The gradient sums the entries of a latent in their order. Plain indexing adds with atomics on several threads, and
    its last bits then differ from run to run.
    """
    taken: Tensor = _PerLatent.apply(table, indices)
    return taken


class _PerLatent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.latents = table.shape[0]
        return table[indices]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.latents)
        add_in_order_(total, indices.long(), grad.contiguous())
        return total, None

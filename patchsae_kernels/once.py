"""Differentiable once: a derivative of a gradient is an error.

Where a gradient is not recorded, autograd takes it for a constant, and a loss that holds one loses a term silently.
`torch.autograd.function.once_differentiable` notices it only where the gradient that comes in is itself recorded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def no_second_derivative(ctx: Any, *_: Any) -> None:
    """The backward of a gradient."""
    raise RuntimeError(
        "the ops of patchsae_kernels are differentiable once, and a derivative of a gradient (create_graph=True) was "
        "asked for; detach the gradient, or write the loss with dense latents in PyTorch"
    )


def differentiable_once(gradient: Tensor, *inputs: Tensor) -> Tensor:
    """``gradient``, through which autograd does not pass on its way to the ``inputs`` that it depends on."""
    same: Tensor = _Once.apply(gradient, *inputs)
    return same


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    backward = staticmethod(no_second_derivative)

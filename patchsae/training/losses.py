"""The released training loss as one differentiable function of the autoencoder's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.models.sae_config import PARAMETERS
from patchsae_kernels.parts import differentiable_once

if TYPE_CHECKING:
    from patchsae.models.sae import SparseAutoencoder


def patchsae_loss(
    sae: SparseAutoencoder,
    r: Tensor,
    dead: Tensor | None = None,
    l1: float = 8e-5,
    ghost: bool = True,
    cls_weight: float = 1.0,
) -> pk.StepTerms:
    """The released PatchSAE loss (released code of arXiv 2412.05276; it differs from the published equation).

        h = relu((r - b_dec) W_enc + b_enc),  y = h W_dec + b_dec
        mse = mean over B, T, D of w_t (y - r)^2 / |r_t|,  w_t = cls_weight for the CLS token, else 1
        l1 term = l1 * mean over B, T of sum_s h
        ghost term: dead latents alone reconstruct the residual, through the exponential of their pre-activation
        total = mse + l1 term + ghost term

    The forward pass computes the gradients too, in row chunks, so no [N, S] tensor exists; backward hands them out.

    Args:
        r: residual stream [B, T, D], CLS first, or [N, D] (no token is CLS then). A constant: it gets no gradient.
        dead: bool [S], the latents that receive ghost gradients; None means none of them.
        l1: coefficient of the sparsity term.
        ghost: whether the ghost term is computed.
        cls_weight: weight of token 0's squared error in `mse`.

    Returns:
        Terms with `.total` (0-d, its `backward()` fills the parameters' `.grad`) and, detached, `.mse`, `.l1`
        (coefficient included), `.ghost`, `.l0`, `.squared_error`, and `.fired` (bool [S]).

    Raises:
        ValueError: `r` requires a gradient, the autoencoder's activation is not ReLU, or it normalises its tokens.
    """
    if r.requires_grad:
        raise ValueError("r requires grad; patchsae_loss treats the residual stream as data: pass r.detach()")
    if sae.config.activation != "relu":
        raise ValueError(f"sae.config.activation is {sae.config.activation!r}; the released loss is defined for 'relu'")
    if sae.config.normalise != "none" or sae.config.soft_cap is not None:
        raise ValueError(f"sae is {sae}; the released loss is defined for raw tokens and latents without a cap")
    params = sae.parameters_by_name()
    settings = {"dead": dead, "l1": l1, "ghost": ghost, "cls_weight": cls_weight}
    return pk.StepTerms(*_SaeStep.apply(r, settings, *(params[name] for name in PARAMETERS)))


class _SaeStep(torch.autograd.Function):
    """`pk.sae_step` with its gradients handed to autograd; only the total is differentiable."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, settings: dict[str, Any], *params: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(PARAMETERS, params, strict=True))
        terms, grads = pk.sae_step(r, {name: p.detach() for name, p in named.items()}, **settings)
        ctx.save_for_backward(*(grads[name] for name in PARAMETERS))
        ctx.params = params  # not saved, so that an optimiser may change them before backward() reads the gradients
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(differentiable_once(grad * grad_total, *ctx.params) for grad in ctx.saved_tensors))

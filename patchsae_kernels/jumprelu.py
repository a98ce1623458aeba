"""JumpReLU in training: latents whose threshold learns, too.

Rajamanoharan et al. (arXiv 2407.14435), equations 11 and 12. With pre the pre-activation, theta the threshold of its
latent, eps the bandwidth and K = 1 on the open interval (-1/2, 1/2):

    z = pre H(pre - theta),    dz/dtheta := -theta / eps K((pre - theta) / eps)
    l0 = mean over tokens of sum_s H(pre - theta),    dH/dtheta := -1 / eps K((pre - theta) / eps)

so the gradient of a threshold needs latents that are not active, too: those less than eps / 2 below it. They are
entries of the result with the value 0, and get what every entry gets from `decode`'s gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.latents import SparseLatents
from patchsae_kernels.ops import save
from patchsae_kernels.reference import add_in_order_


class JumpReLULatents(NamedTuple):
    """Attributes:

    latents: ``(N, S)``; entries of value 0 are the inactive ones within half a bandwidth of their threshold, so that
        ``latents.l0`` counts too many.
    l0: ``[]``, mean number of active latents per token, differentiable in the threshold.
    """

    latents: SparseLatents
    l0: Tensor


def encode_jumprelu(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    threshold: Tensor,
    *,
    bandwidth: float,
    precision: str = "exact",
    budget_mb: float = 256,
) -> JumpReLULatents:
    """`encode` with ``activation="jumprelu"``, differentiable in the threshold as well.

    Args:
        threshold: ``[S]`` float32, >= 0.
        bandwidth: eps > 0, in units of the pre-activations. The other arguments are `encode`'s.

    Raises:
        ValueError, TypeError: as `encode`.
    """
    checks.encoder_weights(W_enc, b_enc, b_dec)
    checks.encode_arguments(x, W_enc, "jumprelu", None, threshold, precision)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}; expected a positive number")
    checks.non_negative("threshold", threshold)
    budget = checks.budget_bytes(budget_mb)
    values, indices, indptr, l0 = _JumpReLU.apply(x, W_enc, b_enc, b_dec, threshold, bandwidth, precision, budget)
    return JumpReLULatents(SparseLatents(values, indices, indptr, (x.shape[0], W_enc.shape[1])), l0)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        threshold: Tensor,
        bandwidth: float,
        precision: str,
        budget: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # A latent whose band reaches below 0 is encoded with a bias that lifts its lower edge to 0, the least allowed.
        lift = (bandwidth / 2 - threshold).clamp_min(0)
        edge = (threshold - bandwidth / 2).clamp_min(0)
        values, indices, indptr = torch.ops.patchsae.encode(
            x, W_enc, b_enc + lift, b_dec, [], edge, "jumprelu", 0, precision, budget
        )
        latent = indices.long()
        pre = values - lift[latent]
        above = pre - threshold[latent]
        active, band = above > 0, above.abs() < bandwidth / 2
        tokens = max(x.shape[0], 1)
        save(ctx, indices, indptr, active, band, x, W_enc, b_dec, threshold)
        ctx.bandwidth, ctx.tokens = bandwidth, tokens
        ctx.mark_non_differentiable(indices, indptr)
        return torch.where(active, pre, 0), indices, indptr, active.sum().to(values.dtype) / tokens

    @staticmethod
    def backward(
        ctx: Any, grad_values: Tensor, _indices: Tensor, _indptr: Tensor, grad_l0: Tensor
    ) -> tuple[Tensor | None, ...]:
        indices, indptr, active, band, x, W_enc, b_dec, threshold = ctx.saved_tensors
        through = torch.where(active, grad_values, 0)
        with_x = ctx.needs_input_grad[0]
        grads = torch.ops.patchsae.encode_backward(through, indices, indptr, x, W_enc, b_dec, with_x)
        latent = indices.long()
        jump = -(threshold[latent] * grad_values + grad_l0 / ctx.tokens) / ctx.bandwidth
        grad_threshold = torch.zeros_like(threshold)
        add_in_order_(grad_threshold, latent, torch.where(band, jump, 0).to(threshold.dtype))
        return (grads[0] if with_x else None, *grads[1:], grad_threshold, None, None, None)

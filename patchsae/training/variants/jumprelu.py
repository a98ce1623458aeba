"""JumpReLU: a threshold for every latent, trained with straight-through estimators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.parallel.base import Parallel
from patchsae.training.variants.error import Tokens
from patchsae.training.variants.latents import encoded, table_for, values_of, with_values
from patchsae.training.variants.variant import Chunk, Params, Variant


@dataclass(frozen=True)
class JumpReLU(Variant):
    """h = z where z > theta, sparsity term ``l0 * (number of active latents)``, theta = exp(log_threshold).

    Rajamanoharan et al. 2024 (arXiv 2407.14435). z gets its true gradient; theta gets pseudo-derivatives from the z
    within half a bandwidth of it, on both sides:

        d h / d theta = -theta / bandwidth,  d (z > theta) / d theta = -1 / bandwidth,  if |z - theta| < bandwidth / 2

    ``threshold`` is that of all latents at the start.

    Not on `pk.encode_jumprelu`, which the first steps' dense chunks cannot come from, and whose l0 is a mean over one
    call's tokens and latents.
    """

    l0: float = field(kw_only=True)
    bandwidth: float = field(kw_only=True)
    threshold: float = field(kw_only=True)

    def restart(self) -> dict[str, float]:
        """See `Variant.restart`."""
        return {"b_enc": 0.0, "log_threshold": math.log(self.threshold)}

    def export(
        self, params: Params, buffers: Mapping[str, Tensor], metadata: Mapping[str, str | int | float]
    ) -> SparseAutoencoder:
        """See `Variant.export`."""
        d, s = params["W_enc"].shape
        config = SAEConfig(d, s, activation="jumprelu", metadata=metadata)
        tensors = {name: p for name, p in params.items() if name != "log_threshold"}
        tensors["threshold"] = params["log_threshold"].detach().exp()
        return SparseAutoencoder.from_tensors(config, tensors).to(params["b_dec"].device)

    def _chunks(
        self, tokens: Tokens, params: Params, buffers: Mapping[str, Tensor], parallel: Parallel
    ) -> Iterator[Chunk]:
        edge = params["log_threshold"].detach().exp() - self.bandwidth / 2
        # what is encoded is above 0: a latent whose band reaches below it is encoded with a bias that lifts the band
        lift = (-edge).clamp(min=0)
        encoder = params["W_enc"], params["b_enc"] + lift, params["b_dec"]
        for rows, band in encoded(tokens.x, *encoder, edge.clamp(min=0), self.budget, parallel):
            threshold = table_for(band, params["log_threshold"].exp())
            values, active = _Jump.apply(values_of(band), table_for(band, lift), threshold, self.bandwidth)
            yield Chunk(rows, with_values(band, values), self.l0 * parallel.sum_latents(active.sum()))


class _Jump(torch.autograd.Function):
    """``(z (z > theta), (z > theta))`` with the pseudo-derivatives of `JumpReLU`; ``lifted`` is z + lift.

    Dense latents have 0 in ``lifted`` where there is nothing: that is in no band, whatever the rounding of the lift.
    """

    @staticmethod
    def forward(ctx: Any, lifted: Tensor, lift: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        z = lifted - lift
        active = (z > theta).to(z.dtype)
        in_band = (((z - theta).abs() < bandwidth / 2) & (lifted > 0)).to(z.dtype) / bandwidth
        ctx.save_for_backward(theta, active, in_band)
        return z * active, active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_active: Tensor) -> tuple[Tensor | None, ...]:
        theta, active, in_band = ctx.saved_tensors
        grad_theta = -in_band * (theta * grad_h + grad_active)
        return grad_h * active, None, grad_theta.sum_to_size(theta.shape), None

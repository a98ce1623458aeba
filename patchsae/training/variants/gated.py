"""Gated: one path decides which latents are active, the other how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.parallel.base import Parallel
from patchsae.training.variants.error import Tokens
from patchsae.training.variants.latents import Latents, decode, encoded, table_for, values_of, with_values
from patchsae.training.variants.variant import Chunk, Params, Variant


@dataclass(frozen=True)
class Gated(Variant):
    """h = relu(u exp(r_mag) + b_mag) where the gate u + b_enc is above 0, with u = (x - b_dec) W_enc.

    Rajamanoharan et al. 2024 (arXiv 2404.16014), weights tied as there. The sparsity term is
    ``l1 * sum_s relu(gate)`` plus the error of the reconstruction that relu(gate) alone makes with a decoder that
    is held fixed; its errors count as those of the reconstruction do.
    """

    l1: float = field(kw_only=True)

    def restart(self) -> dict[str, float]:
        """See `Variant.restart`."""
        return {"b_enc": 0.0, "r_mag": 0.0, "b_mag": 0.0}

    def export(
        self, params: Params, buffers: Mapping[str, Tensor], metadata: Mapping[str, str | int | float]
    ) -> SparseAutoencoder:
        """A JumpReLU: the gate is open where the magnitude's pre-activation is above b_mag - b_enc exp(r_mag)."""
        p = {name: tensor.detach() for name, tensor in params.items()}
        d, s = p["W_enc"].shape
        scale = p["r_mag"].exp()
        tensors = {
            "W_enc": p["W_enc"] * scale,
            "b_enc": p["b_mag"],
            "W_dec": p["W_dec"],
            "b_dec": p["b_dec"],
            "threshold": (p["b_mag"] - p["b_enc"] * scale).clamp(min=0),
        }
        config = SAEConfig(d, s, activation="jumprelu", metadata=metadata)
        return SparseAutoencoder.from_tensors(config, tensors).to(p["b_dec"].device)

    def _chunks(
        self, tokens: Tokens, params: Params, buffers: Mapping[str, Tensor], parallel: Parallel
    ) -> Iterator[Chunk]:
        encoder = params["W_enc"], params["b_enc"], params["b_dec"]
        for rows, gate in encoded(tokens.x, *encoder, None, self.budget, parallel, copies=2):
            yield Chunk(rows, _magnitudes(gate, params), self._penalty(gate, tokens[rows], params, parallel))

    def _penalty(self, gate: Latents, tokens: Tokens, params: Params, parallel: Parallel) -> Tensor:
        b_dec = params["b_dec"].detach() / parallel.latent_size
        y = parallel.sum_latents(decode(gate, params["W_dec"].detach(), b_dec))
        error = tokens.scale * tokens.cls * (y - tokens.x).square().sum(1, keepdim=True)
        return self.l1 * parallel.sum_latents(values_of(gate).sum()) + error.sum()


def _magnitudes(gate: Latents, params: Params) -> Latents:
    """h of the latents whose gate is open. The gate's own gradient is that of the step function: none."""
    bias, scale, shift = (table_for(gate, table) for table in (params["b_enc"], params["r_mag"].exp(), params["b_mag"]))
    values = values_of(gate)
    magnitude = (values - bias) * scale + shift
    return with_values(gate, magnitude.relu() * (values > 0))

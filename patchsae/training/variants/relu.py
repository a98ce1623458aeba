"""ReLU with an L1 term: the released recipe, and its published form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

import patchsae_kernels as pk
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.parallel.base import Parallel
from patchsae.training.variants.error import Tokens
from patchsae.training.variants.ghost import Ghost
from patchsae.training.variants.latents import encoded, values_of
from patchsae.training.variants.variant import Chunk, Params, Variant


@dataclass(frozen=True)
class ReLU(Variant):
    """h = relu((x - b_dec) W_enc + b_enc), sparsity term ``l1 * sum_s h`` (Lim et al., arXiv 2412.05276).

    Attributes:
        kept: what `pk.sae_step` keeps from step to step. It changes a result by rounding, on a GPU only.
    """

    l1: float = field(kw_only=True)
    kept: Kept = field(default_factory=lambda: Kept(), compare=False)

    def step(
        self, x: Tensor, params: Params, buffers: Mapping[str, Tensor], dead: Tensor | None, parallel: Parallel
    ) -> tuple[pk.StepTerms, dict[str, Tensor]]:
        """See `Variant.step`. The released recipe with all latents in one process is `pk.sae_step`."""
        ghost = isinstance(self.dead_term, Ghost)
        if not self._released or parallel.latent_size > 1:
            return super().step(x, params, buffers, dead, parallel)
        return pk.sae_step(
            x,
            params,
            l1=self.l1,
            dead=dead,
            ghost=ghost,
            cls_weight=self.error.cls_weight,
            choice=self.kept.choice,
            prepared=self.prepared(params),
            budget_mb=self.budget / 2**20,
        )

    def prepared(self, params: Params) -> pk.PreparedWeights | None:
        """See `Variant.prepared`."""
        if not self._released:
            return None
        known = self.kept.prepared
        if known is None or known.W_enc is not params["W_enc"]:
            known = self.kept.prepared = pk.prepare(params["W_enc"], params["b_enc"], params["b_dec"])
        return known

    @property
    def _released(self) -> bool:
        return self.error.released and (self.dead_term is None or isinstance(self.dead_term, Ghost))

    def export(
        self, params: Params, buffers: Mapping[str, Tensor], metadata: Mapping[str, str | int | float]
    ) -> SparseAutoencoder:
        """See `Variant.export`."""
        d, s = params["W_enc"].shape
        return SparseAutoencoder.from_tensors(SAEConfig(d, s, metadata=metadata), params).to(params["b_dec"].device)

    def _chunks(
        self, tokens: Tokens, params: Params, buffers: Mapping[str, Tensor], parallel: Parallel
    ) -> Iterator[Chunk]:
        encoder = params["W_enc"], params["b_enc"], params["b_dec"]
        for rows, latents in encoded(tokens.x, *encoder, None, self.budget, parallel):
            yield Chunk(rows, latents, self.l1 * parallel.sum_latents(values_of(latents).sum()))


@dataclass(eq=False)
class Kept:
    """Of one run: whether its steps are dense or sparse, and its packed encoder."""

    choice: pk.StepChoice = field(default_factory=pk.StepChoice)
    prepared: pk.PreparedWeights | None = None

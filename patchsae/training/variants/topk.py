"""TopK: the k largest latents of every token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

import patchsae_kernels as pk
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.parallel.base import Parallel
from patchsae.training.variants.chunks import row_chunks
from patchsae.training.variants.error import Tokens
from patchsae.training.variants.select import topk
from patchsae.training.variants.variant import Chunk, Params, Variant


@dataclass(frozen=True)
class TopK(Variant):
    """The k largest positive pre-activations of a token, no sparsity term (Gao et al. 2024, arXiv 2406.04093)."""

    k: int = field(kw_only=True)

    def export(
        self, params: Params, buffers: Mapping[str, Tensor], metadata: Mapping[str, str | int | float]
    ) -> SparseAutoencoder:
        """See `Variant.export`."""
        d, s = params["W_enc"].shape
        config = SAEConfig(d, s, activation="topk", k=min(self.k, s), metadata=metadata)
        return SparseAutoencoder.from_tensors(config, params).to(params["b_dec"].device)

    def _chunks(
        self, tokens: Tokens, params: Params, buffers: Mapping[str, Tensor], parallel: Parallel
    ) -> Iterator[Chunk]:
        x = tokens.x
        weights = pk.prepare(params["W_enc"], params["b_enc"], params["b_dec"])
        for rows in row_chunks(x.shape[0], x.shape[1], self.k, self.budget):
            yield Chunk(rows, topk(x[rows], weights, self.k, parallel), x.new_zeros(()))

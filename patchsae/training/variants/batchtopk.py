"""BatchTopK: the largest latents of a whole batch, and a threshold for inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.parallel.base import Parallel
from patchsae.training.variants.chunks import VECTORS_PER_TOKEN, row_chunks
from patchsae.training.variants.error import Tokens
from patchsae.training.variants.select import batchtopk
from patchsae.training.variants.variant import Chunk, Params, Variant
from patchsae_kernels.parts import attached

MEMORY = 0.99
"""Share of the running threshold that a step keeps: it averages over about a hundred batches."""


@dataclass(frozen=True)
class BatchTopK(Variant):
    """The k * N largest positive pre-activations of a batch of N tokens (Bussmann et al. 2024, arXiv 2412.06410).

    The batch is that of all processes. Inference is a JumpReLU with one threshold: the running average over batches of
    the smallest latent that was kept, buffer ``threshold`` (0-d; 0 before the first step).
    """

    k: int = field(kw_only=True)

    def buffers(self, params: Params) -> dict[str, Tensor]:
        """See `Variant.buffers`."""
        return {"threshold": params["b_enc"].new_zeros(()).detach()}

    def export(
        self, params: Params, buffers: Mapping[str, Tensor], metadata: Mapping[str, str | int | float]
    ) -> SparseAutoencoder:
        """See `Variant.export`."""
        d, s = params["W_enc"].shape
        config = SAEConfig(d, s, activation="jumprelu", metadata=metadata)
        tensors = {**params, "threshold": buffers["threshold"].expand(s)}
        return SparseAutoencoder.from_tensors(config, tensors).to(params["b_dec"].device)

    def _chunks(
        self, tokens: Tokens, params: Params, buffers: Mapping[str, Tensor], parallel: Parallel
    ) -> Iterator[Chunk]:
        x = tokens.x
        W_enc, b_enc, b_dec = params["W_enc"], params["b_enc"], params["b_dec"]
        selected = batchtopk(x, pk.prepare(W_enc, b_enc, b_dec), self.k, parallel)
        _update(buffers["threshold"], selected.values, parallel)
        for rows in row_chunks(x.shape[0], x.shape[1], self.k, self.budget, self._vectors_per_token()):
            part = _rows(selected, rows)
            yield Chunk(rows, attached(part, x[rows], W_enc, b_enc, b_dec), x.new_zeros(()))

    def _vectors_per_token(self) -> int:
        return VECTORS_PER_TOKEN


def _update(threshold: Tensor, kept: Tensor, parallel: Parallel) -> None:
    """Moves the running threshold by one batch, of which this process has the latents ``kept``."""
    mine = kept.min().reshape(1) if len(kept) else threshold.new_full((1,), torch.inf)
    smallest = parallel.gather_data(parallel.gather_latents(mine).flatten()).min()
    moved = torch.where(threshold > 0, threshold.lerp(smallest, 1 - MEMORY), smallest)
    threshold.copy_(torch.where(smallest.isfinite(), moved, threshold))


def _rows(z: pk.SparseLatents, rows: slice) -> pk.SparseLatents:
    """Some rows of sparse latents; values and indices are views."""
    start, end = z.indptr[rows.start].item(), z.indptr[rows.stop].item()
    indptr = z.indptr[rows.start : rows.stop + 1] - start
    return pk.SparseLatents(z.values[start:end], z.indices[start:end], indptr, (rows.stop - rows.start, z.shape[1]))

"""Matryoshka: nested prefixes of the latents reconstruct the token, each on its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Parallel
from patchsae.training.variants.batchtopk import BatchTopK
from patchsae.training.variants.chunks import VECTORS_PER_TOKEN
from patchsae.training.variants.latents import Latents
from patchsae.training.variants.variant import Params

VECTORS_PER_PREFIX = 4
"""Vectors ``[D]`` of a token for each prefix: its segment, the running sum, the error and their gradients."""


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK whose loss is the sum of the errors of nested prefixes (Bussmann et al. 2025, arXiv 2503.17547).

    Prefix g is the latents below round(share_g * S). Segments between prefixes are decoded once; a prefix is a running
    sum of them.

    Attributes:
        prefixes: shares of S, ascending to 1.
    """

    prefixes: tuple[float, ...] = field(kw_only=True)

    def _reconstructions(self, latents: Latents, params: Params, parallel: Parallel) -> Tensor:
        assert isinstance(latents, pk.SparseLatents)
        segments = self._segments(latents, parallel)
        b_dec = params["b_dec"]
        parts = pk.decode(segments, params["W_dec"], torch.zeros_like(b_dec))
        nested = parts.view(latents.shape[0], len(self.prefixes), -1).cumsum(1)
        return parallel.sum_latents(nested + b_dec / parallel.latent_size)

    def _segments(self, latents: pk.SparseLatents, parallel: Parallel) -> pk.SparseLatents:
        """One row a token and segment: the entries of a row ascend, so cutting the rows moves none of them."""
        tokens, mine = latents.shape
        ends = [round(share * mine * parallel.latent_size) for share in self.prefixes]
        cuts = torch.tensor(ends[:-1], device=latents.device) - mine * parallel.latent_rank
        segment = torch.bucketize(latents.indices.long(), cuts, right=True)
        counts = torch.bincount(latents.rows() * len(ends) + segment, minlength=tokens * len(ends))
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return pk.SparseLatents(latents.values, latents.indices, indptr, (tokens * len(ends), mine))

    def _vectors_per_token(self) -> int:
        return VECTORS_PER_TOKEN + VECTORS_PER_PREFIX * len(self.prefixes)

"""Latents of a chunk of tokens: sparse, or dense while a large share of them is active."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Parallel
from patchsae.training.variants.chunks import estimated_share, row_chunks
from patchsae.training.variants.per_latent import per_latent
from patchsae_kernels.parts import finite_rows

Latents = pk.SparseLatents | Tensor
"""Sparse ``(n, S)``, or dense ``[n, S]`` with zeros where there is nothing."""

DENSE_FROM = 1 / 8
"""Share of active latents from which dense products are taken, as in `pk.sae_step` on the CPU.

At 197 tokens of the paper's size with half of the latents active, on one thread of an AMD EPYC, a step of the published
ReLU recipe on sparse latents took 6.5 s, on dense ones 2.1 s.
"""
MARGIN = 1.5
"""On the estimate of what is active."""
DENSE_ENTRIES = 0.5
"""What a dense latent and its temporaries take, in entries of sparse ones."""


def encoded(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    lower: Tensor | None,
    budget: int,
    parallel: Parallel,
    copies: int = 1,
) -> Iterator[tuple[slice, Latents]]:
    """The tokens ``x [N, D]`` in order, chunk by chunk: their pre-activations above ``lower [S]`` (None: 0).

    Dense chunks hold all above 0. Differentiable, what is active held fixed. The processes that share the latents cut
    alike and choose alike between sparse and dense.

    Args:
        budget: bytes for a chunk and its gradients.
        copies: how many latents of this kind a chunk has at the same time.
    """
    share = estimated_share(x, W_enc, b_enc, b_dec, lower, parallel)
    latents, dense = W_enc.shape[1], share > DENSE_FROM
    entries = copies * max(1, latents * (DENSE_ENTRIES if dense else min(1, MARGIN * share)))
    chunks = row_chunks(x.shape[0], x.shape[1], entries, budget)
    if dense:
        finite_rows("x", x)
        for rows in chunks:
            yield rows, _dense(x[rows], W_enc, b_enc, b_dec)
        return
    weights = pk.prepare(W_enc, b_enc, b_dec)
    activation = "relu" if lower is None else "jumprelu"
    for rows in chunks:
        yield rows, pk.encode(x[rows], weights, activation=activation, threshold=lower)


def decode(latents: Latents, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Reconstruction ``[n, D]``; differentiable in the values, W_dec and b_dec."""
    if isinstance(latents, Tensor):
        return torch.addmm(b_dec, latents, W_dec)
    return pk.decode(latents, W_dec, b_dec)


def values_of(latents: Latents) -> Tensor:
    """``[nnz]`` or ``[n, S]``."""
    return latents if isinstance(latents, Tensor) else latents.values


def with_values(latents: Latents, values: Tensor) -> Latents:
    """The same places with other values."""
    return values if isinstance(latents, Tensor) else latents.with_values(values)


def table_for(latents: Latents, table: Tensor) -> Tensor:
    """``table [S]`` in a shape that goes with the values; differentiable."""
    return table if isinstance(latents, Tensor) else per_latent(table, latents.indices)


def count_active(latents: Latents, fired: Tensor) -> Tensor | int:
    """Values above 0 in all; marks their latents in ``fired``, bool ``[S]``."""
    if isinstance(latents, Tensor):
        active = latents > 0
        fired |= active.any(0)
        return active.sum()
    indices = latents.indices[latents.values > 0].long()
    fired[indices] = True
    return indices.shape[0]


def _dense(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """b_dec gets its gradient through a vector of zeros: from the centred tokens it would cost a product more."""
    through = (b_dec.detach() - b_dec) @ W_enc.detach()
    return torch.addmm(b_enc + through, x - b_dec.detach(), W_enc).relu()

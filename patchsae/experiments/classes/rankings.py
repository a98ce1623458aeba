"""Orderings of the latents: by class, by dataset, at random."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_by(scores: Tensor) -> Tensor:
    """Position of every latent when ordered by descending score, ties to the lower latent.

    scores: [S] or [C, S], any real dtype. Returns int32 of the same shape, the ``rank`` of ``pk.decode_sweep``: the
    best latent of a row has rank 0.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return positions_of(order)


def positions_of(order: Tensor) -> Tensor:
    """The inverse of an ordering: int32 of the same shape, ``rank[..., order[..., i]] = i``."""
    places = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.int32).scatter_(-1, order, places)


def order_of(rank: Tensor, k: int) -> Tensor:
    """The first ``k`` latents of a ranking, int64 [..., k]."""
    return rank.argsort(dim=-1)[..., :k]


def random_rank(latents: int, seed: int) -> Tensor:
    """A random ordering of ``latents`` latents that depends on the seed alone: int32 [S]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(latents, generator=generator).to(torch.int32)


def common_latents(class_counts: Tensor, top: int, classes: int) -> Tensor:
    """Latents that say little about any class: in the first ``top`` of more than ``classes`` classes.

    class_counts: [C, S]. Returns bool [S]. A latent that a class never saw is not in that class's first ``top``.
    """
    first = class_counts.argsort(dim=1, descending=True, stable=True)[:, :top]
    seen = class_counts.gather(1, first) > 0
    found = torch.bincount(first[seen], minlength=class_counts.shape[1])
    return found > classes

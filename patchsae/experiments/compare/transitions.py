"""Which latents are high in a class before and after: the three kinds of Lim et al. (arXiv 2412.05276), table 1.

Every share says what it divides by: what the published 11.x % divide by is stated nowhere and cannot be recovered from
the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.experiments.classes.rankings import rank_by

TRANSITIONS = ("high/high", "high->low", "low->high")
NORMALISATIONS = {
    "high": "the number of latents asked for as high",
    "high_a": "the latents high in A",
    "high_b": "the latents high in B",
    "high_either": "the latents high in A or in B",
    "active_a": "the latents above the threshold anywhere in the class in A",
    "active_b": "the latents above the threshold anywhere in the class in B",
    "active_either": "the latents above the threshold anywhere in the class in A or in B",
    "all": "all latents of the autoencoder",
}


@dataclass(frozen=True, eq=False)
class Transitions:
    """Latents of C classes by where they rank on side A and on side B."""

    counts: Tensor
    """int64 [C, 3]: latents of every kind, in the order of ``TRANSITIONS``."""
    denominators: dict[str, Tensor]
    """int64 [C] for each of ``NORMALISATIONS``."""

    def shares(self, of: str) -> Tensor:
        """float64 [C, 3]: counts divided by the denominator ``of``; 0 where that is 0."""
        return self.counts / self.denominators[of].clamp_min(1)[:, None].double()

    def mean_counts(self, labels: Sequence[int] | Tensor) -> list[float]:
        """Mean number of latents of every kind over some classes."""
        return self.counts[torch.as_tensor(labels)].double().mean(dim=0).tolist()

    def mean_shares(self, of: str, labels: Sequence[int] | Tensor) -> list[float]:
        """Mean share of every kind over some classes."""
        return self.shares(of)[torch.as_tensor(labels)].mean(dim=0).tolist()


def transitions(before: Tensor, after: Tensor, high: int = 50, low: int = 100) -> Transitions:
    """Compare the class counts a_c of two sides, int64 [C, S] each.

    A latent is high in a class when it is among the first ``high`` by a_c (ties go to the lower latent) and a_c > 0;
    low when it is not among the first ``low``, or a_c = 0. Those in between are neither, so the kinds do not add up to
    all latents.
    """
    rows = [_class(a, b, high, low) for a, b in zip(before, after, strict=True)]
    counts = torch.stack([row[0] for row in rows])
    sizes = torch.stack([row[1] for row in rows])
    return Transitions(counts, dict(zip(NORMALISATIONS, sizes.unbind(dim=1), strict=True)))


def _class(before: Tensor, after: Tensor, high: int, low: int) -> tuple[Tensor, Tensor]:
    """int64 [3] and [len(NORMALISATIONS)] of one class."""
    active = [counts > 0 for counts in (before, after)]
    ranks = [rank_by(counts) for counts in (before, after)]
    high_a, high_b = (fires & (rank < high) for fires, rank in zip(active, ranks, strict=True))
    low_a, low_b = (~fires | (rank >= low) for fires, rank in zip(active, ranks, strict=True))
    kinds = (high_a & high_b, high_a & low_b, low_a & high_b)
    sets = (high_a, high_b, high_a | high_b, *active, active[0] | active[1])
    sizes = [high, *(int(chosen.sum()) for chosen in sets), len(before)]
    return torch.tensor([int(kind.sum()) for kind in kinds]), torch.tensor(sizes)

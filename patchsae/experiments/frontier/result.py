"""The figures of every autoencoder of a sweep, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """One autoencoder of the frontier. NaN where a figure does not exist."""

    name: str
    variant: str
    block: int
    expansion: int
    latents: int
    option: str
    """What sets its sparsity: l1, k or l0."""
    value: float
    l0: float
    """Mean number of active latents per token."""
    explained_variance: float
    nmse: float
    """sum |y - x|^2 / sum |x|^2."""
    mse: float
    """The released loss, every token with weight 1."""
    dead: float
    """Share of the latents that are active on none of the tokens."""
    dense: float
    """Share of the latents that are active on more than a tenth of the tokens."""
    concept_precision: float
    """Mean over the concepts of the best latent's average precision over images."""
    concept_iou: float
    """Mean over the concepts of the overlap of its patches with the concept's."""
    base_rate: float
    """Mean over the concepts of the share of images that show it: the average precision of a coin."""

    @property
    def family(self) -> tuple[str, int, int]:
        """Variant, expansion, block: what a line of the plot has in common; along it the sparsity option changes."""
        return self.variant, self.expansion, self.block


def columns(points: Sequence[Point]) -> dict[str, list[Any]]:
    """The table, a row per point; a figure that does not exist is None."""
    rows = [asdict(point) for point in points]
    return {name: [_present(row[name]) for row in rows] for name in rows[0]}


def _present(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value

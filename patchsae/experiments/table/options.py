"""What `patchsae table` can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from patchsae.experiments.compare.options import CompareOptions
from patchsae.experiments.mask.options import TopKOptions


@dataclass(frozen=True)
class CellOptions(CompareOptions):
    """A cell of `patchsae table`: a comparison that tells base and novel classes apart, unless told otherwise."""

    groups: Literal["none", "base-novel"] = "base-novel"
    """`base-novel`: the first half of the classes (rounded up) and the rest are reported apart, and an image is
    classified among the classes of its own half, as base-to-novel accuracies are published."""


@dataclass(frozen=True)
class TableOptions:
    """What holds for all cells of a table."""

    cell: CompareOptions = field(default_factory=CellOptions)
    """Of the comparisons; the templates of a cell take the place of these."""
    masks: TopKOptions = field(default_factory=TopKOptions)
    """Which masks are swept, where any are."""
    mask: bool = False
    """Whether the latents of every cell's classes are masked in both models, by the rankings of both."""
    share: str = "high_either"
    """Normalisation of the table as the paper prints it, one of `compare.transitions.NORMALISATIONS`."""

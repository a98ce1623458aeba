"""Accuracies and recalls of a masking sweep, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchsae.experiments.sweep import RECONSTRUCTION, UNMODIFIED, Variant

if TYPE_CHECKING:
    from patchsae.runs import Stage

UNRANKED = (UNMODIFIED, RECONSTRUCTION)


@dataclass(frozen=True, eq=False)
class MaskResult:
    """Correctly classified images of every class under every variant."""

    variants: tuple[Variant, ...]
    """V variants: unmodified, reconstruction, then ranking by mode by k."""
    classnames: tuple[str, ...]
    correct: Tensor
    """int64 [V, C]."""
    images: Tensor
    """int64 [C]: images of every class."""

    def accuracy(self, variant: Variant) -> float:
        """Share of all images that is classified correctly."""
        return int(self.correct[self.variants.index(variant)].sum()) / int(self.images.sum())

    def recall(self, variant: Variant) -> list[float | None]:
        """Share of every class's images that is classified correctly; None for a class without images."""
        row = self.correct[self.variants.index(variant)].tolist()
        return [right / n if n else None for right, n in zip(row, self.images.tolist(), strict=True)]

    @property
    def rankings(self) -> list[str]:
        """Names of the rankings that were swept."""
        return list(dict.fromkeys(variant.ranking for variant in self.variants if variant not in UNRANKED))

    @property
    def ks(self) -> list[int]:
        """Numbers of latents that were swept, ascending; the last is S."""
        return sorted({variant.k for variant in self.variants if variant not in UNRANKED})

    def save(self, stage: Stage) -> None:
        """Write ``correct.safetensors``, ``accuracy.csv`` (a row per variant), ``recall.csv`` (per variant and
        class)."""
        stage.save_tensors("correct", {"correct": self.correct, "images": self.images})
        stage.save_json(
            "variants", {"variants": [list(variant) for variant in self.variants], "classnames": list(self.classnames)}
        )
        names: dict[str, list[Any]] = {
            "variant": [variant.name for variant in self.variants],
            "ranking": [None if variant in UNRANKED else variant.ranking for variant in self.variants],
            "mode": [variant.mode for variant in self.variants],
            "k": [None if variant in UNRANKED else variant.k for variant in self.variants],
        }
        accuracies: dict[str, Any] = {
            "accuracy": [self.accuracy(variant) for variant in self.variants],
            "correct": self.correct.sum(dim=1).numpy(),
            "images": np.full(len(self.variants), int(self.images.sum())),
        }
        stage.write_table("accuracy.csv", {**names, **accuracies})
        classes, rows = len(self.classnames), len(self.variants)
        repeated = {name: [value for value in column for _ in range(classes)] for name, column in names.items()}
        recalls: dict[str, Any] = {
            "label": np.tile(np.arange(classes), rows),
            "class": list(self.classnames) * rows,
            "recall": [recall for variant in self.variants for recall in self.recall(variant)],
            "correct": self.correct.flatten().numpy(),
            "images": np.tile(self.images.numpy(), rows),
        }
        stage.write_table("recall.csv", {**repeated, **recalls})

    @staticmethod
    def load(stage: Stage) -> MaskResult:
        """Read what :meth:`save` left in the stage."""
        tensors, names = stage.load_tensors("correct"), stage.load_json("variants")
        found = tuple(Variant(*row) for row in names["variants"])
        return MaskResult(found, tuple(names["classnames"]), tensors["correct"], tensors["images"])

"""Accuracies and recalls of a masking sweep, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patchsae.disk.runs import Stage
from patchsae.experiments.mask.embeddings import RECONSTRUCTION, UNMODIFIED, Masking
from patchsae.experiments.stored import require_shapes

UNRANKED = (UNMODIFIED, RECONSTRUCTION)


@dataclass(frozen=True, eq=False)
class MaskResult:
    """Correctly classified images of every class under every masking."""

    maskings: tuple[Masking, ...]
    """V maskings: unmodified, reconstruction, then ranking by mode by k."""
    classnames: tuple[str, ...]
    correct: Tensor
    """int64 [V, C]."""
    images: Tensor
    """int64 [C]: images of every class."""

    def accuracy(self, masking: Masking, labels: range | None = None) -> float:
        """Share of the images (of these classes; None is all) that is classified correctly. There must be some."""
        classes = slice(None) if labels is None else slice(labels.start, labels.stop)
        return int(self.correct[self.maskings.index(masking), classes].sum()) / int(self.images[classes].sum())

    def recall(self, masking: Masking) -> list[float | None]:
        """Share of every class's images that is classified correctly; None for a class without images."""
        row = self.correct[self.maskings.index(masking)].tolist()
        return [right / n if n else None for right, n in zip(row, self.images.tolist(), strict=True)]

    @property
    def rankings(self) -> list[str]:
        """Names of the rankings that were swept."""
        return list(dict.fromkeys(masking.ranking for masking in self.maskings if masking not in UNRANKED))

    @property
    def ks(self) -> list[int]:
        """Numbers of latents that were swept, ascending; the last is S."""
        return sorted({masking.k for masking in self.maskings if masking not in UNRANKED})

    def save(self, stage: Stage) -> None:
        """Write ``correct.safetensors``, ``variants.json``, ``accuracy.csv`` (a row per variant), ``recall.csv`` (per
        variant and class)."""
        stage.save_tensors("correct", {"correct": self.correct, "images": self.images})
        stage.save_json(
            "variants", {"variants": [list(masking) for masking in self.maskings], "classnames": list(self.classnames)}
        )
        stage.write_table("accuracy.csv", self.accuracy_columns())
        stage.write_table("recall.csv", self.recall_columns())

    def accuracy_columns(self, labels: range | None = None) -> dict[str, Any]:
        """A row per masking: accuracy over the images (of these classes; None is all)."""
        classes = slice(None) if labels is None else slice(labels.start, labels.stop)
        return {
            **self._masking_columns(),
            "accuracy": [self.accuracy(masking, labels) for masking in self.maskings],
            "correct": self.correct[:, classes].sum(dim=1).tolist(),
            "images": [int(self.images[classes].sum())] * len(self.maskings),
        }

    def recall_columns(self) -> dict[str, Any]:
        """A row per masking and class."""
        classes, rows = len(self.classnames), len(self.maskings)
        names = self._masking_columns()
        return {
            **{name: [value for value in column for _ in range(classes)] for name, column in names.items()},
            "label": list(range(classes)) * rows,
            "class": list(self.classnames) * rows,
            "recall": [recall for masking in self.maskings for recall in self.recall(masking)],
            "correct": self.correct.flatten().tolist(),
            "images": self.images.tolist() * rows,
        }

    @staticmethod
    def load(stage: Stage) -> MaskResult:
        """Read what :meth:`save` left in the stage."""
        with stage.understanding():
            tensors, names = stage.load_tensors("correct"), stage.load_json("variants")
            found = tuple(Masking(*row) for row in names["variants"])
            require_shapes(
                tensors, {"correct": "int64 V C", "images": "int64 C"}, V=len(found), C=len(names["classnames"])
            )
            return MaskResult(found, tuple(names["classnames"]), tensors["correct"], tensors["images"])

    def _masking_columns(self) -> dict[str, list[Any]]:
        return {
            "variant": [masking.name for masking in self.maskings],
            "ranking": [None if masking in UNRANKED else masking.ranking for masking in self.maskings],
            "mode": [masking.mode for masking in self.maskings],
            "k": [None if masking in UNRANKED else masking.k for masking in self.maskings],
        }

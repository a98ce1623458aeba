"""What masking with the rankings of both sides in the models of both gives, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from patchsae.disk.runs import Stage
from patchsae.experiments.accuracies import accuracy_columns
from patchsae.experiments.compare.result import side_names
from patchsae.experiments.groups import class_groups
from patchsae.experiments.mask.embeddings import RECONSTRUCTION, UNMODIFIED, Masking
from patchsae.experiments.mask.result import MaskResult
from patchsae.experiments.stored import require_shapes

SIDES = ("a", "b")


@dataclass(frozen=True, eq=False)
class CrossedResult:
    """2 x 2: the ranking is that of side "a" or "b", the model is that of side A or B."""

    names: tuple[str, str]
    groups: str
    """"none" or "base-novel": whether base and novel classes are told apart."""
    models: tuple[MaskResult, MaskResult]
    """Masking in model A and in model B; the rankings in them are named "a" and "b"."""

    @property
    def distinct_names(self) -> tuple[str, str]:
        """The names, told apart where they are the same."""
        return side_names(self.names)

    @property
    def classnames(self) -> tuple[str, ...]:
        """Name of every label."""
        return self.models[0].classnames

    @property
    def class_groups(self) -> dict[str, range]:
        """Groups of classes that have images."""
        images = self.models[0].images
        groups = class_groups(self.groups, len(self.classnames))
        return {name: labels for name, labels in groups.items() if int(images[labels.start : labels.stop].sum())}

    @property
    def accuracies(self) -> dict[str, tuple[float, float]]:
        """Group of classes -> accuracy of both models as they are."""
        return self._pairs(UNMODIFIED)

    @property
    def reconstructed(self) -> dict[str, tuple[float, float]]:
        """Group of classes -> accuracy of both models with every latent kept."""
        return self._pairs(RECONSTRUCTION)

    def mask_columns(self) -> dict[str, list[Any]]:
        """A row per model, group of classes and masking."""
        parts = [
            (letter, name, group, result.accuracy_columns(labels))
            for letter, name, result in zip(SIDES, self.names, self.models, strict=True)
            for group, labels in self.class_groups.items()
        ]
        return _stacked(("model", "model_name", "group"), parts)

    def recall_columns(self) -> dict[str, list[Any]]:
        """A row per model, masking and class."""
        sides = zip(SIDES, self.names, self.models, strict=True)
        parts = [(letter, name, result.recall_columns()) for letter, name, result in sides]
        return _stacked(("model", "model_name"), parts)

    def save(self, stage: Stage) -> None:
        """Write ``correct.safetensors``, ``variants.json``, ``accuracy.csv``, ``masks.csv`` and ``recall.csv``."""
        names = ("correct", "images")
        stage.save_tensors("correct", {n: torch.stack([getattr(side, n) for side in self.models]) for n in names})
        about = {"sides": list(self.names), "groups": self.groups, "classnames": list(self.classnames)}
        stage.save_json("variants", {"variants": [list(masking) for masking in self.models[0].maskings], **about})
        stage.write_table("accuracy.csv", accuracy_columns(self.names, self.accuracies))
        stage.write_table("masks.csv", self.mask_columns())
        stage.write_table("recall.csv", self.recall_columns())

    @staticmethod
    def load(stage: Stage) -> CrossedResult:
        """Read what :meth:`save` left in the stage."""
        with stage.understanding():
            tensors, about = stage.load_tensors("correct"), stage.load_json("variants")
            maskings, classnames = tuple(Masking(*row) for row in about["variants"]), tuple(about["classnames"])
            sizes = {"V": len(maskings), "C": len(classnames)}
            require_shapes(tensors, {"correct": "int64 2 V C", "images": "int64 2 C"}, **sizes)
            first, second = (
                MaskResult(maskings, classnames, correct, images)
                for correct, images in zip(tensors["correct"], tensors["images"], strict=True)
            )
            return CrossedResult((about["sides"][0], about["sides"][1]), about["groups"], (first, second))

    def _pairs(self, masking: Masking) -> dict[str, tuple[float, float]]:
        a, b = self.models
        return {name: (a.accuracy(masking, ls), b.accuracy(masking, ls)) for name, ls in self.class_groups.items()}


def _stacked(names: tuple[str, ...], parts: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """Tables one below the other; each part is the values of ``names`` for its rows, then its columns."""
    stacked: dict[str, list[Any]] = {name: [] for name in (*names, *parts[0][-1])}
    for *values, columns in parts:
        rows = len(next(iter(columns.values())))
        whole = {**{name: [value] * rows for name, value in zip(names, values, strict=True)}, **columns}
        for name, column in whole.items():
            stacked[name] += column
    return stacked

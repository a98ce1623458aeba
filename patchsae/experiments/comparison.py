"""What comparing two sides gives: per image, per class and per latent, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchsae.data import ImageDataset
from patchsae.experiments.pair_table import Pairs, listed, overlap
from patchsae.experiments.rankings import order_of, rank_by

if TYPE_CHECKING:
    from patchsae.runs import Stage

_TENSORS = ("mean_activation", "noise", "frequency", "counts", "top_images")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides A and B of M pairs of images, S latents, C classes. Dimension 0 of size 2 is the side."""

    names: tuple[str, str]
    top: int
    """Latents of an image or class that are compared."""
    classnames: tuple[str, ...] | None
    pairs: Pairs
    mean_activation: Tensor
    """float64 [2, S]: mean over all tokens of the side's images."""
    noise: Tensor
    """float64 [2, S]: mean activation over the images in which the latent is active (what makes a latent noisy)."""
    frequency: Tensor
    """float64 [2, S]: share of the side's images in which the latent is active."""
    counts: Tensor
    """int64 [2, S]: tokens above tau."""
    class_counts: Tensor | None
    """int64 [2, C, S]: tokens above tau in the images of a class."""
    top_images: Tensor
    """int64 [2, S, n]: reference images, positions in the side's dataset; -1 where there is none."""

    @property
    def shift(self) -> Tensor:
        """float64 [S]: change of the mean activation from A to B."""
        return self.mean_activation[1] - self.mean_activation[0]

    @property
    def accuracies(self) -> tuple[float, float] | None:
        """Zero-shot accuracy of both sides, or None without labels."""
        labelled = self.pairs.labels >= 0
        if self.classnames is None or not labelled.any():
            return None
        first, second = self.pairs.correct[labelled].double().mean(dim=0).tolist()
        return first, second

    @property
    def delta(self) -> float | None:
        """Improvement of the accuracy from A to B, see :func:`improvement`; None without labels."""
        return None if self.accuracies is None else improvement(*self.accuracies)

    @property
    def class_top(self) -> tuple[Tensor, Tensor] | None:
        """int64 [C, top] of both sides: latents of every class by tokens above tau; -1 where a class has fewer."""
        if self.class_counts is None:
            return None
        first, second = (_class_top(counts, self.top) for counts in self.class_counts)
        return first, second

    def class_columns(self) -> dict[str, list[Any]]:
        """A row per class: images, accuracies, improvement, shared and exclusive latents among the top of each side."""
        tops = self.class_top
        if tops is None or self.classnames is None:
            return {}
        common = overlap(*tops)
        accuracy = [self._class_accuracy(label) for label in range(len(self.classnames))]
        return {
            "label": list(range(len(self.classnames))),
            "class": list(self.classnames),
            "images": torch.bincount(
                self.pairs.labels[self.pairs.labels >= 0], minlength=len(self.classnames)
            ).tolist(),
            "accuracy_a": [a for a, _ in accuracy],
            "accuracy_b": [b for _, b in accuracy],
            "delta": [None if a is None or b is None else improvement(a, b) for a, b in accuracy],
            **_overlap_columns(tops, common),
        }

    def image_columns(self, datasets: tuple[ImageDataset, ImageDataset]) -> dict[str, Any]:
        """A row per pair of images: ids, label, shift, shared and exclusive latents among the top of each side."""
        labels, tops = self.pairs.labels.tolist(), (self.pairs.top[:, 0], self.pairs.top[:, 1])
        names = self.classnames or ()
        known = [label >= 0 for label in labels]
        columns: dict[str, Any] = {}
        for side, letter in enumerate("ab"):
            index = self.pairs.positions[:, side].tolist()
            columns[f"index_{letter}"] = index
            columns[f"id_{letter}"] = [datasets[side].ids(i) for i in index]
        columns["label"] = [label if there else None for label, there in zip(labels, known, strict=True)]
        columns["class"] = [names[label] if there else None for label, there in zip(labels, known, strict=True)]
        for side, letter in enumerate("ab"):
            correct = self.pairs.correct[:, side].tolist()
            columns[f"correct_{letter}"] = [
                right if there else None for right, there in zip(correct, known, strict=True)
            ]
        columns["shift"] = self.pairs.shift.numpy()
        return columns | _overlap_columns(tops, overlap(*tops))

    def latent_columns(self) -> dict[str, np.ndarray]:
        """A row per latent: mean activation, frequency and tokens above tau on both sides, and the shift."""
        columns = {"latent": np.arange(len(self.shift))}
        for name, values in (("mean", self.mean_activation), ("frequency", self.frequency), ("tokens", self.counts)):
            columns |= {f"{name}_a": values[0].numpy(), f"{name}_b": values[1].numpy()}
        return columns | {"shift": self.shift.numpy()}

    def save(self, stage: Stage) -> None:
        """Write ``pairs``, ``sides`` and (with labels) ``class_counts`` as safetensors, names as JSON."""
        stage.save_tensors("pairs", self.pairs._asdict())
        stage.save_tensors("sides", {name: getattr(self, name) for name in _TENSORS})
        if self.class_counts is not None:
            stage.save_tensors("class_counts", {"counts": self.class_counts})
        classnames = None if self.classnames is None else list(self.classnames)
        stage.save_json("names", {"sides": list(self.names), "top": self.top, "classnames": classnames})

    @staticmethod
    def load(stage: Stage) -> Comparison:
        """Read what :meth:`save` left in the stage."""
        names, classes = stage.load_json("names"), None
        if names["classnames"] is not None:
            classes = stage.load_tensors("class_counts")["counts"]
        return Comparison(
            names=(names["sides"][0], names["sides"][1]),
            top=names["top"],
            classnames=None if names["classnames"] is None else tuple(names["classnames"]),
            pairs=Pairs(**stage.load_tensors("pairs")),
            class_counts=classes,
            **stage.load_tensors("sides"),
        )

    def _class_accuracy(self, label: int) -> tuple[float | None, float | None]:
        mine = self.pairs.correct[self.pairs.labels == label]
        if len(mine) == 0:
            return None, None
        first, second = mine.double().mean(dim=0).tolist()
        return first, second


def improvement(first: float, second: float) -> float | None:
    """delta = (B - A) / (1 - A) of two accuracies in [0, 1]; None where A is 1."""
    return None if first == 1 else (second - first) / (1 - first)


def _class_top(counts: Tensor, top: int) -> Tensor:
    latents = order_of(rank_by(counts), top)
    return torch.where(counts.gather(1, latents) > 0, latents, -1)


def _overlap_columns(tops: tuple[Tensor, Tensor], common: Any) -> dict[str, list[Any]]:
    return {
        "shared": common.shared.sum(dim=1).tolist(),
        "only_a": common.only_first.sum(dim=1).tolist(),
        "only_b": common.only_second.sum(dim=1).tolist(),
        "shared_latents": listed(tops[0], common.shared),
        "only_a_latents": listed(tops[0], common.only_first),
        "only_b_latents": listed(tops[1], common.only_second),
    }

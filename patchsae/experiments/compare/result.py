"""What comparing two sides gives: per image, per class and per latent, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchsae.data import ImageDataset
from patchsae.disk.runs import Stage
from patchsae.experiments.accuracies import improvement
from patchsae.experiments.classes.rankings import order_of, rank_by
from patchsae.experiments.compare.class_shift import ClassShift, class_shift, class_shift_columns
from patchsae.experiments.compare.pair_table import Pairs, listed, overlap
from patchsae.experiments.compare.transitions import Transitions, transitions
from patchsae.experiments.groups import class_groups, reported_groups
from patchsae.experiments.stored import require_range, require_shapes

_TENSORS = ("mean_activation", "noise", "frequency", "counts", "top_images")
_SHAPES = {
    **dict.fromkeys(("mean_activation", "noise", "frequency"), "float64 2 S"),
    "counts": "int64 2 S",
    "class_counts": "int64 2 C S",
    "top_images": "int64 2 S n",
    "positions": "int64 M 2",
    "labels": "int64 M",
    "top": "int64 M 2 t",
    "shift": "float64 M",
    "correct": "bool M 2",
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides A and B of M pairs of images, S latents, C classes. Dimension 0 of size 2 is the side."""

    names: tuple[str, str]
    top: int
    """Latents of an image or class that are compared."""
    high: int
    """A latent is high in a class when it is among so many of its first."""
    low: int
    """A latent is low in a class when it is not among so many of its first."""
    groups: str
    """"none" or "base-novel": whether base and novel classes are told apart."""
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
    made_from: dict[str, Any]
    """"sae", "side_a" and "side_b" as the stage's configuration has them; an empty one fits nothing."""

    @property
    def distinct_names(self) -> tuple[str, str]:
        """The names, told apart where they are the same."""
        return side_names(self.names)

    @property
    def shift(self) -> Tensor:
        """float64 [S]: change of the mean activation from A to B."""
        return self.mean_activation[1] - self.mean_activation[0]

    @property
    def class_images(self) -> Tensor:
        """int64 [C]: pairs of images of every class."""
        labels = self.pairs.labels[self.pairs.labels >= 0]
        return torch.bincount(labels, minlength=len(self.classnames or ()))

    @property
    def accuracies(self) -> dict[str, tuple[float, float]]:
        """Group of classes -> zero-shot accuracy of both sides; groups without images are left out."""
        found = {}
        for group, labels in class_groups(self.groups, len(self.classnames)).items() if self.classnames else ():
            mine = self.pairs.correct[(self.pairs.labels >= labels.start) & (self.pairs.labels < labels.stop)]
            if len(mine):
                first, second = mine.double().mean(dim=0).tolist()
                found[group] = (first, second)
        return found

    @cached_property
    def transitions(self) -> Transitions | None:
        """Latents of every class that are high on both sides, turn low, or turn high; None without labels."""
        if self.class_counts is None:
            return None
        before, after = self.class_counts
        return transitions(before, after, self.high, self.low)

    @cached_property
    def class_shift(self) -> ClassShift | None:
        """Where the tokens per image of a class change most, for every latent; None without labels."""
        if self.class_counts is None:
            return None
        before, after = self.class_counts
        return class_shift(before, after, self.class_images)

    @property
    def seen_labels(self) -> dict[str, Tensor]:
        """Group -> labels int64 of those of its classes that have images: all of them, then base and novel."""
        if self.classnames is None:
            return {}
        seen = self.class_images > 0
        groups = reported_groups(self.groups, len(self.classnames))
        return {name: seen[list(labels)].nonzero().squeeze(1) + labels.start for name, labels in groups.items()}

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
            "images": self.class_images.tolist(),
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

    def latent_columns(self) -> dict[str, Any]:
        """A row per latent: mean activation, frequency, tokens above tau on both sides, and what moved how far."""
        columns: dict[str, Any] = {"latent": np.arange(len(self.shift))}
        for name, values in (("mean", self.mean_activation), ("frequency", self.frequency), ("tokens", self.counts)):
            columns |= {f"{name}_a": values[0].numpy(), f"{name}_b": values[1].numpy()}
        columns["shift"] = self.shift.numpy()
        shifts = self.class_shift
        return columns if shifts is None else columns | class_shift_columns(shifts, self.classnames or ())

    def require_consistent(self) -> None:
        """Raise ValueError where the parts contradict one another."""
        tensors = {name: getattr(self, name) for name in (*_TENSORS, "class_counts")} | self.pairs._asdict()
        require_shapes(tensors, _SHAPES, C=len(self.classnames or ()))
        require_range("labels", self.pairs.labels, -1, len(self.classnames or ()) - 1)

    def save(self, stage: Stage) -> None:
        """Write ``pairs``, ``sides`` and (with labels) ``class_counts`` as safetensors, and ``names.json``."""
        stage.save_tensors("pairs", self.pairs._asdict())
        stage.save_tensors("sides", {name: getattr(self, name) for name in _TENSORS})
        if self.class_counts is not None:
            stage.save_tensors("class_counts", {"counts": self.class_counts})
        about = {name: getattr(self, name) for name in ("top", "high", "low", "groups", "made_from")}
        classnames = None if self.classnames is None else list(self.classnames)
        stage.save_json("names", {"sides": list(self.names), "classnames": classnames, **about})

    @staticmethod
    def load(stage: Stage) -> Comparison:
        """Read what :meth:`save` left in the stage."""
        with stage.understanding():
            names, classes = stage.load_json("names"), None
            if names["classnames"] is not None:
                classes = stage.load_tensors("class_counts")["counts"]
            first, second = names["sides"]
            found = Comparison(
                names=(first, second),
                top=names["top"],
                high=names["high"],
                low=names["low"],
                groups=names["groups"],
                made_from=names["made_from"],
                classnames=None if names["classnames"] is None else tuple(names["classnames"]),
                pairs=Pairs(**stage.load_tensors("pairs")),
                class_counts=classes,
                **stage.load_tensors("sides"),
            )
            found.require_consistent()
            return found

    def _class_accuracy(self, label: int) -> tuple[float | None, float | None]:
        mine = self.pairs.correct[self.pairs.labels == label]
        if len(mine) == 0:
            return None, None
        first, second = mine.double().mean(dim=0).tolist()
        return first, second


def side_names(names: tuple[str, str]) -> tuple[str, str]:
    """Two names for a plot or a table, told apart where they are the same."""
    return names if names[0] != names[1] else (f"{names[0]} (A)", f"{names[1]} (B)")


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

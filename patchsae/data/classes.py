"""Some classes of a dataset as a dataset of its own: base and novel classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from patchsae.data.base import DataError, ImageDataset, ReadGroups, Sample, Subset


class Relabelled(ImageDataset):
    """Images of another dataset under other labels."""

    def __init__(self, images: ImageDataset, labels: np.ndarray, classnames: list[str]) -> None:
        super().__init__(images.name, labels, classnames)
        self.images = images

    def ids(self, i: int) -> str:
        return self.images.ids(i)

    def sample(self, i: int) -> Sample:
        return dataclasses.replace(self.images.sample(i), label=int(self.labels[i]))

    @property
    def read_groups(self) -> ReadGroups | None:
        return self.images.read_groups


def relabelled(dataset: ImageDataset, classes: Sequence[int]) -> ImageDataset:
    """The images of some classes, in dataset order; class `classes[i]` gets label i and keeps its name.

    Raises:
        DataError: a dataset without labels, or `classes` not distinct labels of it.
    """
    names = _names(dataset)
    wrong = [label for label in classes if not 0 <= label < len(names)]
    if wrong or len(set(classes)) != len(classes):
        came = f"{wrong[0]}" if wrong else "a label twice"
        raise DataError(f"classes has {came}; expected distinct labels within 0 .. {len(names) - 1}")
    position = np.full(len(names) + 1, -1, np.int64)  # the last one is where label -1 looks
    position[list(classes)] = np.arange(len(classes))
    kept = np.flatnonzero(position[dataset.labels] >= 0)
    return Relabelled(Subset(dataset, kept), position[dataset.labels[kept]], [names[label] for label in classes])


def base_novel(dataset: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """(base, novel): the first ceil(C / 2) classes by label and the rest, each relabelled from 0.

    As CoCoOp and MaPLe divide a dataset's classes. Every split of a dataset is divided alike, whichever classes have
    images in it.

    Raises:
        DataError: fewer than two classes.
    """
    classes = len(_names(dataset))
    if classes < 2:
        raise DataError(f"{dataset.name} has {classes} class; expected at least 2 to divide into base and novel")
    middle = -(-classes // 2)
    return relabelled(dataset, range(middle)), relabelled(dataset, range(middle, classes))


def _names(dataset: ImageDataset) -> list[str]:
    if dataset.classnames is None:
        raise DataError(f"{dataset.name} has no labels; expected a dataset with classes")
    return dataset.classnames

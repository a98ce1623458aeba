"""Slices of a split: "train[:80%]" is the first 80 % of every class, "[40000:]" the images from position 40,000 on."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from patchsae.data.base import DataError, ImageDataset

_SLICED = re.compile(r"(?P<split>[^\[\]]*)\[(?P<start>\d{0,18}%?):(?P<stop>\d{0,18}%?)\]")


@dataclass(frozen=True)
class Slice:
    """Bounds as written: "", a position such as "40000", or a percentage such as "80%"."""

    start: str
    stop: str

    def of(self, dataset: ImageDataset) -> ImageDataset:
        """The part of a dataset, in its order.

        Percentages count within each class, so that "[:80%]" and "[80%:]" both have every class and share no image.
        """
        position = np.arange(len(dataset))
        classes, class_of, sizes = np.unique(dataset.labels, return_inverse=True, return_counts=True)
        order = np.argsort(class_of, kind="stable")
        within = np.empty(len(dataset), np.int64)
        within[order] = position - np.repeat(np.cumsum(sizes) - sizes, sizes)
        size = sizes[class_of] if len(classes) else position
        keep = _from(self.start, position, within, size) & ~_from(
            self.stop or str(len(dataset)), position, within, size
        )
        return dataset.subset(np.flatnonzero(keep))


def cut(split: str | None) -> tuple[str | None, Slice | None]:
    """("train", slice) of "train[:80%]", (None, slice) of "[40000:]", (split, None) of anything without brackets.

    Raises:
        DataError: brackets that do not hold START:STOP.
    """
    if split is None or not ("[" in split or "]" in split):
        return split, None
    found = _SLICED.fullmatch(split)
    if found is None or "%" in (found["start"], found["stop"]):
        raise DataError(f'split is {split!r}; expected a slice such as "train[:80%]" or "[40000:50000]"')
    return found["split"] or None, Slice(found["start"], found["stop"])


def _from(bound: str, position: np.ndarray, within: np.ndarray, size: np.ndarray) -> np.ndarray:
    """bool [n]: images at or after a bound."""
    if bound.endswith("%"):
        return within >= np.rint(size * int(bound[:-1]) / 100)
    return position >= int(bound or 0)

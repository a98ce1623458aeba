"""The one view of an image dataset: position -> picture, label, id."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image


class DataError(ValueError):
    """A dataset cannot be opened as asked; the message names the argument, what came and what was expected."""


class Flawed(DataError):
    """A dataset of which a part is wrong; `rest` is the dataset without that part."""

    def __init__(self, message: str, rest: ImageDataset) -> None:
        super().__init__(message)
        self.rest = rest


class BadImage(DataError):
    """One image cannot be decoded. `id` names it, `reason` says why."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(id, reason)
        self.id = id
        self.reason = reason

    def __str__(self) -> str:
        return f"image {self.id!r} cannot be read: {self.reason}"


@dataclass(frozen=True)
class BadImageRecord:
    """An image that was left out: its dataset position, its id and the reason."""

    index: int
    id: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """One image of a dataset."""

    image: Image.Image
    """Mode RGB, upright (EXIF orientation applied), fully decoded."""
    label: int
    """Position in `classnames`; -1 where the image has no label."""
    id: str
    """Names the image within its dataset: a relative path, or `shard.parquet#row`."""


@dataclass(frozen=True)
class ReadGroups:
    """Rows that are read from storage together, so that an order can visit them together."""

    starts: np.ndarray
    """int64 [G + 1]: group g holds the dataset positions starts[g] .. starts[g + 1] - 1."""
    together: int
    """How many groups a process can keep in memory."""


class ImageDataset(ABC):
    """A dataset whose labels are known and whose images are decoded one at a time, on demand.

    Subclasses give `ids` and `sample`, and must be picklable: worker processes get a copy. Nothing here holds
    decoded images.

    Args:
        name: what reports call the dataset.
        labels: integers [n], positions in `classnames`; -1 where there is no label.
        classnames: C names, which may repeat (classes are told apart by position); None for an unlabelled dataset.

    Raises:
        DataError: a label outside -1 .. C - 1.
    """

    def __init__(self, name: str, labels: np.ndarray, classnames: list[str] | None) -> None:
        self.name = name
        self.labels = _checked_labels(labels, classnames)
        self.classnames = classnames
        self.notes: tuple[str, ...] = ()
        """A line for each kind of thing that was found beside the images and is none of them."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def ids(self, i: int) -> str:
        """The id of image `i`, without decoding it. Raises IndexError outside 0 .. n - 1."""

    @abstractmethod
    def sample(self, i: int) -> Sample:
        """Image `i`, decoded. Raises BadImage where that is impossible, IndexError outside 0 .. n - 1."""

    @property
    def read_groups(self) -> ReadGroups | None:
        """Where random access is dear, the groups of rows stored together; None where any order is as good."""
        return None

    def subset(self, indices: np.ndarray | Sequence[int]) -> ImageDataset:
        """The images at `indices` (int [m], repeats allowed), in that order, with the same classes.

        Raises:
            DataError: an index outside 0 .. n - 1.
        """
        return Subset(self, np.asarray(indices, dtype=np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of name, size, class names, labels and ids: equal for what a resumed run may go on with."""
        digest = hashlib.sha256(f"{self.name}\0{len(self)}\0{self.classnames}\0".encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes())
        for i in range(len(self)):
            digest.update(self.ids(i).encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()[:16]


class Subset(ImageDataset):
    """Some positions of another dataset."""

    def __init__(self, parent: ImageDataset, indices: np.ndarray) -> None:
        outside = indices[(indices < 0) | (indices >= len(parent))]
        if indices.ndim != 1 or len(outside):
            came = f"shape {indices.shape}" if indices.ndim != 1 else f"{outside[0]}"
            raise DataError(f"indices has {came}; expected positions [m] within 0 .. {len(parent) - 1}")
        super().__init__(parent.name, parent.labels[indices], parent.classnames)
        self.notes = parent.notes
        self.parent = parent
        self.indices = indices

    def ids(self, i: int) -> str:
        return self.parent.ids(int(self.indices[position(i, len(self))]))

    def sample(self, i: int) -> Sample:
        return self.parent.sample(int(self.indices[position(i, len(self))]))

    @property
    def read_groups(self) -> ReadGroups | None:
        """The parent's groups, as far as they are in use; None where the subset is not in the parent's order."""
        groups = self.parent.read_groups
        if groups is None or bool((np.diff(self.indices) < 0).any()):
            return None
        return ReadGroups(np.unique(np.searchsorted(self.indices, groups.starts)), groups.together)


def position(i: int, n: int) -> int:
    """`i`, a position among `n` images. -1, which stands for no image in tables, is none: IndexError."""
    if not 0 <= i < n:
        raise IndexError(f"position {i} is outside 0 .. {n - 1}")
    return i


def _checked_labels(labels: np.ndarray, classnames: list[str] | None) -> np.ndarray:
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    classes = 0 if classnames is None else len(classnames)
    wrong = labels[(labels < -1) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"labels has {wrong[0]}; expected -1 (no label) or a class within 0 .. {classes - 1}")
    return labels

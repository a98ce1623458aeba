"""Image files as a dataset: a root folder, relative paths, labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from patchsae.data.base import ImageDataset, Sample
from patchsae.data.decode import EXTENSIONS, decode_file, is_image_name


class FileDataset(ImageDataset):
    """Images in files, identified by their paths below `root` (text with forward slashes)."""

    def __init__(
        self, name: str, root: Path, paths: Sequence[str], labels: np.ndarray, classnames: list[str] | None
    ) -> None:
        super().__init__(name, labels, classnames)
        self.root = root
        self.paths = PathTable(paths)

    def ids(self, i: int) -> str:
        return self.paths[i]

    def sample(self, i: int) -> Sample:
        path = self.paths[i]
        return Sample(decode_file(self.root / path, path), int(self.labels[i]), path)


class PathTable:
    """A list of texts in two flat buffers.

    A million Python strings are a million reference counts, and touching those copies their pages into every worker
    process; two buffers stay shared.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"position {i} is outside 0 .. {len(self) - 1}")
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._bytes[start : int(self._ends[i])])


def visible_folders(root: Path) -> list[str]:
    """Names of the folders in `root` (links to folders too), sorted, without hidden and `__` ones."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if not e.name.startswith((".", "__")) and e.is_dir())


def images_in(root: Path) -> list[str]:
    """Names of the image files directly in `root`, sorted."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if is_image_name(e.name) and e.is_file())


def images_below(root: Path) -> Iterator[str]:
    """Paths, relative to `root`, of the image files anywhere below it, in the order of the walk."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inner = os.path.relpath(folder, root)
        for name in sorted(names):
            if is_image_name(name):
                yield name if inner == "." else f"{inner}/{name}"


def has_images_below(root: Path) -> bool:
    """Whether any image file lies anywhere below `root`."""
    return next(images_below(root), None) is not None


def extensions() -> str:
    """The image file extensions, for messages."""
    return " ".join(EXTENSIONS)

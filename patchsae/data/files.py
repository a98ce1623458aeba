"""Image files as a dataset: a root folder, relative paths, labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from patchsae.data.base import ImageDataset, Sample, position
from patchsae.data.decode import EXTENSIONS, decode_file, is_image
from patchsae.data.layout import dataset_name
from patchsae.disk.names import written


class FileDataset(ImageDataset):
    """Images in files, identified by their paths below `root` (text with forward slashes), as `written`."""

    def __init__(
        self, name: str, root: Path, paths: Sequence[str], labels: np.ndarray, classnames: list[str] | None
    ) -> None:
        super().__init__(name, labels, classnames)
        self.root = root
        self.paths = PathTable(paths)

    def ids(self, i: int) -> str:
        return written(self.paths[i])

    def sample(self, i: int) -> Sample:
        id = self.ids(i)
        return Sample(decode_file(self.root / self.paths[i], id), int(self.labels[i]), id)


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
        start = int(self._ends[i - 1]) if position(i, len(self)) else 0
        return os.fsdecode(self._bytes[start : int(self._ends[i])])


def visible_folders(root: Path) -> list[str]:
    """Names of the folders in `root` (links to folders too), sorted, without hidden and `__` ones."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if not e.name.startswith((".", "__")) and e.is_dir())


def loose_images(root: Path, split: str | None) -> FileDataset:
    """The images directly in `root`, or in its folder `split`, without labels."""
    files = files_in(root / split if split else root)
    paths = [f"{split}/{name}" if split else name for name, image in files if image]
    dataset = FileDataset(dataset_name(root.resolve().name, split), root, paths, np.full(len(paths), -1), None)
    others = [name for name, image in files if not image]
    if others:
        dataset.notes = (f"not taken for images: {by_kind(others)}",)
    return dataset


def images_in(root: Path) -> list[str]:
    """Names of the image files directly in `root`, sorted."""
    return [name for name, image in files_in(root) if image]


def files_in(root: Path) -> list[tuple[str, bool]]:
    """(name, whether it is an image) of the files directly in `root`, sorted, without hidden ones."""
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
    return [(name, is_image(root / name)) for name in names]


def images_below(root: Path) -> Iterator[str]:
    """Paths, relative to `root`, of the image files anywhere below it, in the order of the walk."""
    return (path for path, image in files_below(root) if image)


def files_below(root: Path) -> Iterator[tuple[str, bool]]:
    """(path relative to `root`, whether it is an image) of the files anywhere below it, without hidden ones."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inner = os.path.relpath(folder, root)
        for name in sorted(names):
            if not name.startswith("."):
                yield name if inner == "." else f"{inner}/{name}", is_image(Path(folder, name))


def has_images_below(root: Path) -> bool:
    """Whether any image file lies anywhere below `root`."""
    return next(images_below(root), None) is not None


def by_kind(paths: Iterable[str]) -> str:
    """ "12 .heic, 1 .txt, 1 without extension", the most frequent first."""
    counts = Counter(os.path.splitext(path)[1].lower() or "without extension" for path in paths)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {written(kind)}" for kind, count in ordered)


def some(names: Sequence[str]) -> str:
    """The first of some names, for messages."""
    return written(", ".join(names[:5]) + (", ..." if len(names) > 5 else ""))


def extensions() -> str:
    """The image file extensions, for messages."""
    return " ".join(EXTENSIONS)

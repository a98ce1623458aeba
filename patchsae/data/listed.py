"""Datasets that list their images in a file: what is listed must be there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchsae.data.base import DataError, Flawed, ImageDataset
from patchsae.data.files import FileDataset
from patchsae.data.layout import Layout, dataset_name
from patchsae.disk import documents
from patchsae.disk.paths import is_below


@dataclass(frozen=True)
class Listing:
    """The images of one split, as a file lists them."""

    file: Path
    paths: list[str]
    """Relative to the folder of the dataset, with forward slashes."""
    labels: list[int]
    classnames: list[str]


def listed_layout(
    dataset: str,
    looks_for: str,
    matches: Callable[[Path], bool],
    splits: Callable[[Path], list[str]],
    read: Callable[[Path, str | None], Listing],
) -> Layout:
    """The layout of a dataset with lists of its own, as its authors publish it and torchvision leaves it on the disk.

    Args:
        dataset: its name, as the split files of CoOp spell it; templates are found by it.
        matches: whether a folder is this dataset, complete or not.
        read: one of `splits`, or None where there are none; raises DataError for what is missing.
    """

    def open(source: object, split: str | None, outside: bool) -> ImageDataset:
        root = Path(str(source))
        return open_listing(dataset_name(dataset, split), root, read(root, split), outside)

    return Layout(
        name=f"{dataset}, original lists",
        looks_for=looks_for,
        matches=lambda source: isinstance(source, str) and Path(source).is_dir() and matches(Path(source)),
        splits=lambda source: splits(Path(str(source))),
        open=open,
        precedence=1,
    )


def open_listing(name: str, root: Path, listing: Listing, outside: bool) -> FileDataset:
    """The images of a listing below `root`.

    Raises:
        DataError: a path that leads out of `root`, unless `outside`.
        Flawed: images that are missing: how many, the first of them, and where it was looked for.
    """
    if not outside:
        refuse_outside(root, listing.paths, listing.file)
    labels = np.array(listing.labels, np.int64)
    missing = _missing(root, listing.paths)
    if not missing:
        return FileDataset(name, root, listing.paths, labels, listing.classnames)
    gone = set(missing)
    there = [i for i, path in enumerate(listing.paths) if path not in gone]
    raise Flawed(
        f"{listing.file} lists {len(listing.paths):,} images, of which {len(missing):,} are missing: the first, "
        f"{missing[0]!r}, was looked for at {root / missing[0]}; put them there or take them off the list",
        FileDataset(name, root, [listing.paths[i] for i in there], labels[there], listing.classnames),
    )


def refuse_outside(root: Path, paths: Sequence[str], said_by: Path) -> None:
    """Raise DataError for the first path that leads out of `root`; nothing is looked for before."""
    for path in paths:
        if not is_below(path):
            raise DataError(f"{said_by} names {path!r}; expected a path below {root}, or --outside (outside=True)")


def need(path: Path, what: str) -> Path:
    """`path`, which must be there. Raises DataError that says where it belongs and what it is."""
    if not path.exists():
        raise DataError(f"{path.parent} lacks {path.name} ({what}); expected {path}")
    return path


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones. Raises DataError where it is not UTF-8."""
    return [line for line in map(str.strip, read_text(path).splitlines()) if line]


def read_text(path: Path) -> str:
    """A text file. Raises DataError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start:,}") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises DataError where it is none that can be trusted (`documents.read_json`)."""
    try:
        return documents.read_json(path)
    except ValueError as error:
        raise DataError(str(error)) from error


def parse_json(said_by: str, text: str | bytes) -> Any:
    """What a JSON text holds. Raises DataError as `read_json`."""
    try:
        return documents.parse_json(said_by, text)
    except ValueError as error:
        raise DataError(str(error)) from error


def _missing(root: Path, paths: Sequence[str]) -> list[str]:
    names: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in names:
            names[folder] = _names_in(root / folder)
        # The second look finds what a file system without case finds.
        if name not in names[folder] and not (root / path).is_file():
            missing.append(path)
    return missing


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()

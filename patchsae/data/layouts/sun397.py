"""SUN397: ClassName.txt ("/a/abbey" per line), a/abbey/sun_*.jpg, and the partitions Training_01.txt, Testing_01.txt.

The partitions are a download of their own, and lie beside the folder of images (SUN397/). Without them the dataset is
one piece.
"""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import DataError
from patchsae.data.files import images_below
from patchsae.data.listed import Listing, lines_of, listed_layout
from patchsae.disk.names import spoken

_PARTITIONS = {"train": "Training_01.txt", "test": "Testing_01.txt"}


def _matches(root: Path) -> bool:
    return (root / "ClassName.txt").is_file() or (root / "SUN397" / "ClassName.txt").is_file()


def _splits(root: Path) -> list[str]:
    return [split for split, name in _PARTITIONS.items() if (root / name).is_file()]


def _read(root: Path, split: str | None) -> Listing:
    images = root / "SUN397" if (root / "SUN397").is_dir() else root
    classes = root / "ClassName.txt" if (root / "ClassName.txt").is_file() else images / "ClassName.txt"
    folders = [line.lstrip("/") for line in lines_of(classes)]
    label = {folder: position for position, folder in enumerate(folders)}
    if split is None:
        file, paths = classes, [path for path in images_below(images) if path.rpartition("/")[0] in label]
    else:
        file = root / _PARTITIONS[split]
        paths = [line.lstrip("/") for line in lines_of(file)]
    unknown = [path for path in paths if path.rpartition("/")[0] not in label]
    if not folders:
        raise DataError(f"{classes} lists no classes")
    if unknown or not paths:
        came = f"lists {unknown[0]!r}" if unknown else f"comes without images in {images}"
        raise DataError(f"{file} {came}; expected images in the folders of {classes}, such as {folders[0]}")
    inner = "" if images == root else "SUN397/"
    labels = [label[path.rpartition("/")[0]] for path in paths]
    return Listing(file, [inner + path for path in paths], labels, [_name(folder) for folder in folders])


def _name(folder: str) -> str:
    """ "a/apartment_building/outdoor" -> "outdoor apartment building", as CoOp does."""
    return spoken(" ".join(reversed(folder.split("/")[1:])))


LAYOUT = listed_layout(
    dataset="SUN397",
    looks_for="SUN397: ROOT/ClassName.txt, ROOT/a/abbey/*.jpg (or in ROOT/SUN397), ROOT/{Training,Testing}_01.txt",
    matches=_matches,
    splits=_splits,
    read=_read,
)

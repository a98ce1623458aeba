"""Describable Textures: labels/{train,val,test}1.txt ("banded/banded_0002.jpg" per line), images/CLASS/*.jpg.

Of the ten partitions the first counts, as in torchvision.
"""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import DataError
from patchsae.data.listed import Listing, lines_of, listed_layout, need
from patchsae.disk.names import spoken

_SPLITS = ("train", "val", "test")


def _matches(root: Path) -> bool:
    return any((root / "labels" / f"{split}1.txt").is_file() for split in _SPLITS)


def _read(root: Path, split: str | None) -> Listing:
    lists = {name: _list(root, name) for name in _SPLITS}
    classes = sorted({image.partition("/")[0] for images in lists.values() for image in images})
    label = {folder: position for position, folder in enumerate(classes)}
    images = lists[str(split)]
    return Listing(
        file=root / "labels" / f"{split}1.txt",
        paths=[f"images/{image}" for image in images],
        labels=[label[image.partition("/")[0]] for image in images],
        classnames=[spoken(folder) for folder in classes],
    )


def _list(root: Path, split: str) -> list[str]:
    path = need(root / "labels" / f"{split}1.txt", "a list of images, from dtd-r1.0.1.tar.gz")
    images = lines_of(path)
    wrong = [image for image in images if not all(image.partition("/"))]
    if wrong:
        raise DataError(f"{path} lists {wrong[0]!r}; expected CLASS/IMAGE.jpg")
    return images


LAYOUT = listed_layout(
    dataset="DescribableTextures",
    looks_for="Describable Textures (DTD): ROOT/labels/{train,val,test}1.txt and ROOT/images/CLASS/*.jpg",
    matches=_matches,
    splits=lambda root: list(_SPLITS),
    read=_read,
)

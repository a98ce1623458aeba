"""Oxford-IIIT Pet: annotations/{trainval,test}.txt ("Abyssinian_100 1 1 1": image, class from 1, ...), images/*.jpg."""

from __future__ import annotations

import re
from pathlib import Path

from patchsae.data.base import DataError
from patchsae.data.listed import Listing, lines_of, listed_layout, need
from patchsae.disk.names import spoken


def _matches(root: Path) -> bool:
    return any((root / "annotations" / f"{split}.txt").is_file() for split in ("trainval", "test"))


def _splits(root: Path) -> list[str]:
    return ["trainval", "test"]


def _read(root: Path, split: str | None) -> Listing:
    lists = [_list(root, name) for name in _splits(root)]
    names = {label: breed for entries in lists for _, label, breed in entries}
    if not names:
        raise DataError(f"{root / 'annotations'} lists no images")
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{root / 'annotations'} has classes {min(names) + 1} .. {max(names) + 1} with gaps")
    entries = lists[_splits(root).index(str(split))]
    return Listing(
        file=root / "annotations" / f"{split}.txt",
        paths=[f"images/{image}.jpg" for image, _, _ in entries],
        labels=[label for _, label, _ in entries],
        classnames=[names[label] for label in range(len(names))],
    )


def _list(root: Path, split: str) -> list[tuple[str, int, str]]:
    """(image, label, breed) by line. The breed is in the image's name, in lower case as CoOp has it."""
    path = need(root / "annotations" / f"{split}.txt", "a list of images, from annotations.tar.gz")
    entries = []
    for number, line in enumerate(lines_of(path), 1):
        image, *numbers = line.split()
        breed = image.rpartition("_")[0]
        if not breed or not numbers or re.fullmatch("[1-9][0-9]{0,5}", numbers[0]) is None:
            raise DataError(f"{path} line {number} is {line!r}; expected BREED_NUMBER CLASS SPECIES ID, CLASS from 1")
        entries.append((image, int(numbers[0]) - 1, spoken(breed).lower()))
    return entries


LAYOUT = listed_layout(
    dataset="OxfordPets",
    looks_for="Oxford-IIIT Pet: ROOT/annotations/{trainval,test}.txt and ROOT/images/*.jpg",
    matches=_matches,
    splits=_splits,
    read=_read,
)

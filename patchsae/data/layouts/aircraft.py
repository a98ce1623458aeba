"""FGVC Aircraft: variants.txt (class names), images_variant_{train,val,test}.txt ("1025794 707-320"), images/*.jpg."""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import DataError
from patchsae.data.layout import split_rank
from patchsae.data.listed import Listing, lines_of, listed_layout, need

_LIST = "images_variant_{}.txt"


def _matches(root: Path) -> bool:
    return (root / "variants.txt").is_file() and bool(_splits(root))


def _splits(root: Path) -> list[str]:
    before, after = _LIST.split("{}")
    found = root.glob(_LIST.format("*"))
    # "trainval" is the union of two others, and would make ranking and evaluation overlap unseen.
    return sorted({path.name[len(before) : -len(after)] for path in found} - {"trainval"}, key=split_rank)


def _read(root: Path, split: str | None) -> Listing:
    classnames = lines_of(need(root / "variants.txt", "the names of the classes"))
    position = {name: label for label, name in enumerate(classnames)}
    file = root / _LIST.format(split)
    paths, labels = [], []
    for number, line in enumerate(lines_of(file), 1):
        image, _, name = line.partition(" ")
        if name not in position:
            raise DataError(f"{file} line {number} is {line!r}; expected IMAGE VARIANT, the variant in variants.txt")
        paths.append(f"images/{image}.jpg")
        labels.append(position[name])
    return Listing(file, paths, labels, classnames)


LAYOUT = listed_layout(
    dataset="FGVCAircraft",
    looks_for="FGVC Aircraft: ROOT/variants.txt, ROOT/images_variant_{train,val,test}.txt and ROOT/images/*.jpg",
    matches=_matches,
    splits=_splits,
    read=_read,
)

"""FGVC Aircraft: variants.txt (class names), images_variant_{train,val,test}.txt ("1025794 707-320"), images/*.jpg."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.files import FileDataset
from patchsae.data.layout import Layout, dataset_name, split_rank

_LIST = "images_variant_{}.txt"


def _matches(source: object) -> bool:
    return isinstance(source, str) and (Path(source) / "variants.txt").is_file() and bool(_splits(source))


def _splits(source: object) -> list[str]:
    before, after = _LIST.split("{}")
    found = Path(str(source)).glob(_LIST.format("*"))
    # "trainval" is the union of two others, and would make ranking and evaluation overlap unseen.
    return sorted({path.name[len(before) : -len(after)] for path in found} - {"trainval"}, key=split_rank)


def _open(source: object, split: str | None) -> ImageDataset:
    root = Path(str(source))
    classnames = root.joinpath("variants.txt").read_text(encoding="utf-8").split("\n")
    classnames = [name.strip() for name in classnames if name.strip()]
    position = {name: label for label, name in enumerate(classnames)}
    paths, labels = [], []
    list_file = root / _LIST.format(split)
    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), 1):
        image, _, name = line.strip().partition(" ")
        if name not in position:
            raise DataError(
                f"{list_file} line {number} is {line!r}; expected IMAGE VARIANT, the variant in variants.txt"
            )
        paths.append(f"images/{image}.jpg")
        labels.append(position[name])
    name = dataset_name(root.resolve().name, split)
    return FileDataset(name, root, paths, np.array(labels, np.int64), classnames)


LAYOUT = Layout(
    name="FGVC Aircraft",
    looks_for="FGVC Aircraft: ROOT/variants.txt, ROOT/images_variant_{train,val,test}.txt and ROOT/images/*.jpg",
    matches=_matches,
    splits=_splits,
    open=_open,
)

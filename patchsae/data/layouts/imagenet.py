"""ImageNet and its variants: class folders called by code (n01440764), or by label (ImageNet-V2).

ImageNet lies in ROOT/{train,val} or ROOT/images/{train,val}, its variants in a folder of their own. Names come from
CoOp's classnames.txt ("n01440764 tench" per line) where it is there, else they are OpenAI's. The classes are those
that have a folder: 200 in ImageNet-A and ImageNet-R.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.files import FileDataset, images_in, visible_folders
from patchsae.data.imagenet_codes import (
    CODE,
    names_by_code,
    names_folders,
    read_names,
    val_codes,
    val_number,
    val_truth,
)
from patchsae.data.layout import Layout, dataset_name
from patchsae.data.layouts.class_folders import open_tree, tree_splits

_INSIDE = ("images", "imagenet-a", "imagenet-r", "sketch")
_V2 = "imagenetv2"


def _matches(source: object) -> bool:
    if not isinstance(source, str) or not Path(source).is_dir():
        return False
    if _numbered(_tree(source)) or _shipped_val(source):
        return True
    folders = _class_folders(_tree(source))
    if names_folders(Path(source) / "classnames.txt", folders):
        return True
    return bool(folders) and all(map(CODE.fullmatch, folders)) and folders <= set(names_by_code())


def _tree(source: object) -> Path:
    """The folder of the class folders, or of the splits."""
    root = Path(str(source))
    inside = [root / name for name in _INSIDE if (root / name).is_dir()]
    variants = [path for path in root.glob(f"{_V2}*") if path.is_dir()]
    return next(iter(inside or (variants if len(variants) == 1 else [])), root)


def _class_folders(tree: Path) -> set[str]:
    trees = [tree / split for split in tree_splits(tree)] or [tree]
    return {folder for inner in trees for folder in visible_folders(inner)}


def _splits(source: object) -> list[str]:
    return ["val"] if _shipped_val(source) else tree_splits(_tree(source))


def _shipped_val(source: object) -> bool:
    """Whether there is only the validation set as it is shipped: loose images, their classes in the devkit."""
    tree = _tree(source)
    alone = (tree / "val").is_dir() and not tree_splits(tree)
    return alone and val_truth(Path(str(source))) is not None and not visible_folders(tree / "val")


def _numbered(tree: Path) -> bool:
    """Whether this is ImageNet-V2, which calls its class folders 0 .. 999."""
    return tree.resolve().name.startswith(_V2) and all(name.isdecimal() for name in visible_folders(tree))


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    root = Path(str(source))
    tree, name = _tree(source), root.resolve().name
    names = _names(root, _class_folders(tree))
    if _numbered(tree):
        by_label = {str(label): title for label, title in enumerate(names.values())}
        return open_tree(tree, split, by_label, classes=list(by_label), name=name)
    if split and not visible_folders(tree / split):
        return _labelled(root, tree, split, names)
    return open_tree(tree, split, names, name=name)


def _names(root: Path, folders: set[str]) -> dict[str, str]:
    files = [folder / "classnames.txt" for folder in (root, root.resolve().parent)]
    found = next((file for file in files if names_folders(file, folders)), None)
    return read_names(found) if found else names_by_code()


def _labelled(root: Path, tree: Path, split: str, names: dict[str, str]) -> ImageDataset:
    """A split of loose images (ImageNet's val as it is shipped), with labels where the devkit lies beside it."""
    truth = val_truth(root)
    name = dataset_name(root.resolve().name, split)
    if truth is None:
        dataset = open_tree(tree, split)
        dataset.name = name
        return dataset
    codes = val_codes(truth)
    classes = sorted(set(codes) | (set() if _shipped_val(str(root)) else _class_folders(tree)))
    label = {code: position for position, code in enumerate(classes)}
    images = images_in(tree / split)
    labels = [label[code] for code in _codes_of(images, codes)]
    titles = [names.get(code, code) for code in classes]
    return FileDataset(name, tree, [f"{split}/{image}" for image in images], np.array(labels, np.int64), titles)


def _codes_of(images: list[str], codes: list[str]) -> Iterator[str]:
    for image in images:
        number = val_number(image)
        if number is None or not 1 <= number <= len(codes):
            raise DataError(f"{image} is not one of the devkit's validation images, which are 1 .. {len(codes)}")
        yield codes[number - 1]


LAYOUT = Layout(
    name="ImageNet",
    looks_for=(
        "ImageNet or a variant of it: ROOT/{train,val}/CODE/*.JPEG (or in ROOT/images), ROOT/imagenet-a/CODE/*, "
        "ROOT/imagenet-r/CODE/*, ROOT/imagenetv2-*/LABEL/*, with or without ROOT/classnames.txt"
    ),
    matches=_matches,
    splits=_splits,
    open=_open,
    precedence=1,
)

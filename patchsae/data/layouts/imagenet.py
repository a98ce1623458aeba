"""ImageNet as CoOp keeps it: classnames.txt ("n01440764 tench" per line) beside coded class folders or images/."""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.layout import Layout, dataset_name
from patchsae.data.layouts.class_folders import open_tree, tree_splits


def _matches(source: object) -> bool:
    return isinstance(source, str) and (Path(source) / "classnames.txt").is_file()


def _tree(source: object) -> Path:
    root = Path(str(source))
    return root / "images" if (root / "images").is_dir() else root


def _open(source: object, split: str | None) -> ImageDataset:
    dataset = open_tree(_tree(source), split, _titles(Path(str(source)) / "classnames.txt"))
    dataset.name = dataset_name(Path(str(source)).resolve().name, split)
    return dataset


def _titles(path: Path) -> dict[str, str]:
    titles = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        folder, _, title = line.strip().partition(" ")
        if line.strip() and not title:
            raise DataError(f"{path} line {number} is {line!r}; expected FOLDER NAME OF THE CLASS")
        titles[folder] = title.strip()
    return titles


LAYOUT = Layout(
    name="ImageNet (CoOp)",
    looks_for="ImageNet as CoOp keeps it: ROOT/classnames.txt and ROOT/images/{train,val}/CODE/*.JPEG",
    matches=_matches,
    splits=lambda source: tree_splits(_tree(source)),
    open=_open,
    precedence=1,
)

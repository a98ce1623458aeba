"""Caltech 101: class folders in 101_ObjectCategories/. Two of them are ignored and four renamed, as in CoOp."""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import ImageDataset
from patchsae.data.files import visible_folders
from patchsae.data.layout import Layout
from patchsae.data.layouts.class_folders import open_tree
from patchsae.disk.names import spoken

_FOLDER = "101_ObjectCategories"
_IGNORED = ("BACKGROUND_Google", "Faces_easy")
_RENAMED = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


def _matches(source: object) -> bool:
    if not isinstance(source, str) or not Path(source).is_dir():
        return False
    tree = _tree(source)
    return tree.resolve().name == _FOLDER or (tree / _IGNORED[0]).is_dir()


def _tree(source: object) -> Path:
    root = Path(str(source))
    return root / _FOLDER if (root / _FOLDER).is_dir() else root


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    tree = _tree(source)
    titles = {folder: spoken(_RENAMED.get(folder, folder)) for folder in visible_folders(tree)}
    return open_tree(tree, None, titles, ignored=_IGNORED, name="Caltech101")


LAYOUT = Layout(
    name="Caltech101, class folders",
    looks_for=f"Caltech 101: ROOT/{_FOLDER}/CLASS/*.jpg, in one piece",
    matches=_matches,
    splits=lambda source: [],
    open=_open,
    precedence=1,
)

"""A folder of images without labels: root/*.jpg."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchsae.data.base import ImageDataset
from patchsae.data.files import FileDataset, images_in
from patchsae.data.layout import Layout


def _matches(source: object) -> bool:
    return isinstance(source, str) and Path(source).is_dir() and bool(images_in(Path(source)))


def _open(source: object, split: str | None) -> ImageDataset:
    root = Path(str(source))
    names = images_in(root)
    return FileDataset(root.resolve().name, root, names, np.full(len(names), -1), None)


LAYOUT = Layout(
    name="plain folder",
    looks_for="a folder of images without labels: ROOT/*.jpg",
    matches=_matches,
    splits=lambda source: [],
    open=_open,
    precedence=3,
)

"""A folder of images without labels: root/*.jpg."""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import ImageDataset
from patchsae.data.files import images_in, loose_images
from patchsae.data.layout import Layout


def _matches(source: object) -> bool:
    return isinstance(source, str) and Path(source).is_dir() and bool(images_in(Path(source)))


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    root = Path(str(source))
    return loose_images(root, None)


LAYOUT = Layout(
    name="plain folder",
    looks_for="a folder of images without labels: ROOT/*.jpg",
    matches=_matches,
    splits=lambda source: [],
    open=_open,
    precedence=3,
)

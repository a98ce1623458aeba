"""Food-101: meta/{train,test}.txt ("apple_pie/1005649" per line) or .json, images/CLASS/*.jpg."""

from __future__ import annotations

from pathlib import Path

from patchsae.data.base import DataError
from patchsae.data.listed import Listing, lines_of, listed_layout, need, read_json
from patchsae.disk.names import spoken

_SPLITS = ("train", "test")


def _matches(root: Path) -> bool:
    return any((root / "meta" / f"{split}{kind}").is_file() for split in _SPLITS for kind in (".txt", ".json"))


def _read(root: Path, split: str | None) -> Listing:
    file, images = _list(root, str(split))
    classes = sorted({image.partition("/")[0] for name in _SPLITS for image in _list(root, name)[1]})
    label = {folder: position for position, folder in enumerate(classes)}
    return Listing(
        file=file,
        paths=[f"images/{image}.jpg" for image in images],
        labels=[label[image.partition("/")[0]] for image in images],
        classnames=[spoken(folder) for folder in classes],
    )


def _list(root: Path, split: str) -> tuple[Path, list[str]]:
    text, json_file = root / "meta" / f"{split}.txt", root / "meta" / f"{split}.json"
    if not text.is_file() and json_file.is_file():
        file, images = json_file, [image for listed in _json(json_file).values() for image in listed]
    else:
        file = need(text, "a list of images, from food-101.tar.gz")
        images = lines_of(file)
    wrong = [image for image in images if not all(image.partition("/"))]
    if wrong:
        raise DataError(f"{file} lists {wrong[0]!r}; expected CLASS/IMAGE")
    return file, images


def _json(path: Path) -> dict[str, list[str]]:
    content = read_json(path)
    lists = list(content.values()) if isinstance(content, dict) else [None]
    if not all(isinstance(listed, list) and all(isinstance(image, str) for image in listed) for listed in lists):
        raise DataError(f"{path} holds something else than lists of images by class")
    return dict(content)


LAYOUT = listed_layout(
    dataset="Food101",
    looks_for="Food-101: ROOT/meta/{train,test}.txt (or .json) and ROOT/images/CLASS/*.jpg",
    matches=_matches,
    splits=lambda root: list(_SPLITS),
    read=_read,
)

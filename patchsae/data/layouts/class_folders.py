"""Class folders: root/class/*.jpg, or root/{train,val,test}/class/*.jpg."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchsae.data.base import DataError, Flawed, ImageDataset
from patchsae.data.files import (
    FileDataset,
    by_kind,
    extensions,
    files_below,
    has_images_below,
    images_in,
    loose_images,
    some,
    visible_folders,
)
from patchsae.data.layout import Layout, canonical_split, dataset_name, split_rank
from patchsae.data.listed import lines_of
from patchsae.disk.names import spoken
from patchsae.words import counted

_ALL_IMAGES = ("images", "jpg")
_LISTS = "split_zhou_*.json, annotations/, imagelabels.mat and setid.mat, variants.txt"


def open_tree(
    root: Path,
    split: str | None,
    titles: Mapping[str, str] | None = None,
    ignored: Collection[str] = (),
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> ImageDataset:
    """One split of a tree of class folders.

    Classes are the folders of all splits together, sorted by name, so that labels agree between splits. A split of
    loose images (ImageNet's val as it is shipped) has no labels.

    Args:
        titles: class names by folder name, where folders carry codes; else they are the folders' names, spoken.
        ignored: folders that are no classes.
        classes: the class folders in the order of their labels, where that is not the one of their names; some may
            have no images.
        name: of the dataset, without the split; left out: that of `root`.

    Raises:
        DataError: no images, a root that is one level too high, or folders missing in `titles`.
        Flawed: class folders without images.
    """
    class_root = root / split if split else root
    found = {
        folder: _Found.below(class_root / folder) for folder in visible_folders(class_root) if folder not in ignored
    }
    if not found:
        return _loose(root, split)
    if not any(folder.images for folder in found.values()):
        raise DataError(f"source {class_root} has no images in its {len(found)} folders; {_looked_for()}")
    _refuse_wrong_level(class_root, found)
    folders = list(classes) if classes is not None else _folders_of_all_splits(root, split, [*found], ignored)
    unknown = sorted(set(found) - set(folders))
    if unknown:
        raise DataError(f"{class_root} holds {len(unknown)} folders that are no classes of it: {some(unknown)}")
    paths = [_join(split, folder, path) for folder in found for path in found[folder].images]
    label = {folder: position for position, folder in enumerate(folders)}
    labels = np.repeat([label[folder] for folder in found], [len(folder.images) for folder in found.values()])
    called = dataset_name(name or root.resolve().name, split)
    dataset = FileDataset(called, root, paths, labels, _titled(folders, titles))
    dataset.notes = tuple(_notes(class_root, found))
    _report_empty(class_root, found, dataset)
    return dataset


def tree_splits(root: Path) -> list[str]:
    """The split folders of a tree, train, val, test first; empty where its folders are classes.

    A class may be called "train": split names count where all folders have one, or where such a folder holds folders
    of images.
    """
    folders = visible_folders(root)
    named = [folder for folder in folders if canonical_split(folder)]
    nested = any(has_images_below(root / f / inner) for f in named for inner in visible_folders(root / f))
    return sorted(named, key=split_rank) if named and (nested or len(named) == len(folders)) else []


@dataclass(frozen=True)
class _Found:
    """What is below a class folder."""

    images: list[str]
    others: list[str]
    """Files that are not taken for images."""

    @classmethod
    def below(cls, folder: Path) -> _Found:
        files = list(files_below(folder))
        return cls([path for path, image in files if image], [path for path, image in files if not image])


def _matches(source: object) -> bool:
    if not isinstance(source, str) or not Path(source).is_dir():
        return False
    root = Path(source)
    return any(has_images_below(root / folder) for folder in visible_folders(root))


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    root = Path(str(source))
    _refuse_lone_images(root)
    dataset = open_tree(root, split)
    listed = root / "classnames.txt"
    if listed.is_file() and {spoken(line) for line in lines_of(listed)} != set(dataset.classnames or []):
        dataset.notes += (f"{listed} is not read: it does not say which folder a name is for",)
    return dataset


def _loose(root: Path, split: str | None) -> ImageDataset:
    dataset = loose_images(root, split)
    if not len(dataset):
        raise DataError(f"source {root / (split or '')} holds no class folders and no images; {_looked_for()}")
    return dataset


def _refuse_lone_images(root: Path) -> None:
    """A dataset without its lists: the folder of all pictures is no class."""
    folders = visible_folders(root)
    if len(folders) == 1 and folders[0] in _ALL_IMAGES and images_in(root / folders[0]):
        raise DataError(
            f"source {root} holds the folder {folders[0]} and nothing that says what is on its images; expected the "
            f"lists of the dataset beside it ({_LISTS}), or {root / folders[0]} for images without labels"
        )


def _report_empty(root: Path, found: Mapping[str, _Found], rest: ImageDataset) -> None:
    empty = [
        f"{folder} ({by_kind(inside.others)})" if inside.others else folder
        for folder, inside in found.items()
        if not inside.images
    ]
    if empty:
        raise Flawed(
            f"source {root} has {len(empty)} of {len(found)} class folders without images: {some(empty)}; "
            f"{_looked_for()}",
            rest,
        )


def _refuse_wrong_level(root: Path, found: Mapping[str, _Found]) -> None:
    """Classes may keep their images in one inner folder of the same name each (class/images/*), nothing deeper."""
    inner = {path.rpartition("/")[0] for inside in found.values() for path in inside.images}
    same_inner = len(inner) == 1 and "/" not in next(iter(inner))
    if any("/" not in path for inside in found.values() for path in inside.images) or (same_inner and len(found) > 1):
        return
    raise DataError(
        f"source {root} is one level too high: its folders hold folders of images, not images; "
        f"expected the folder that holds the class folders, such as {root / next(iter(found))}"
    )


def _notes(root: Path, found: Mapping[str, _Found]) -> Iterator[str]:
    others = [path for inside in found.values() for path in inside.others]
    if others:
        yield f"not taken for images in the class folders: {by_kind(others)}"
    stray = images_in(root)
    if stray:
        yield f"not taken, without a class: {counted(len(stray), 'image')} beside the class folders: {some(stray)}"


def _folders_of_all_splits(root: Path, split: str | None, present: list[str], ignored: Collection[str]) -> list[str]:
    if split is None:
        return present
    return sorted({folder for name in tree_splits(root) for folder in visible_folders(root / name)} - set(ignored))


def _titled(folders: list[str], titles: Mapping[str, str] | None) -> list[str]:
    if titles is None:
        return [spoken(folder) for folder in folders]
    unknown = [folder for folder in folders if folder not in titles]
    if unknown:
        raise DataError(f"classnames.txt has no line for {len(unknown)} class folders: {some(unknown)}")
    return [titles[folder] for folder in folders]


def _join(*parts: str | None) -> str:
    return "/".join(part for part in parts if part)


def _looked_for() -> str:
    return f"looked for {extensions()}, and files without extension that begin as an image does"


LAYOUT = Layout(
    name="class folders",
    looks_for="class folders: ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg",
    matches=_matches,
    splits=lambda source: tree_splits(Path(str(source))),
    open=_open,
    precedence=2,
)

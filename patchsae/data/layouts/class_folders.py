"""Class folders: root/class/*.jpg, or root/{train,val,test}/class/*.jpg."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.files import FileDataset, extensions, has_images_below, images_below, images_in, visible_folders
from patchsae.data.layout import Layout, canonical_split, dataset_name, split_rank

_ALL_IMAGES = ("images", "jpg")
_LISTS = "split_zhou_*.json, annotations/, imagelabels.mat and setid.mat, variants.txt"


def open_tree(
    root: Path,
    split: str | None,
    titles: Mapping[str, str] | None = None,
    ignored: Collection[str] = (),
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """One split of a tree of class folders.

    Classes are the folders of all splits together, sorted by name, so that labels agree between splits. A split of
    loose images (ImageNet's val as it is shipped) has no labels.

    Args:
        titles: class names by folder name, where folders carry codes.
        ignored: folders that are no classes.
        classes: the class folders in the order of their labels, where that is not the one of their names; some may
            have no images.

    Raises:
        DataError: class folders without images, a root that is one level too high, or folders missing in `titles`.
    """
    class_root = root / split if split else root
    name = dataset_name(root.resolve().name, split)
    present = [folder for folder in visible_folders(class_root) if folder not in ignored]
    if not present:
        loose = images_in(class_root)
        if not loose:
            raise DataError(f"source {class_root} holds no class folders and no images; looked for {extensions()}")
        paths = [f"{split}/{name}" if split else name for name in loose]
        return FileDataset(name, root, paths, np.full(len(paths), -1), None)
    inside = {folder: list(images_below(class_root / folder)) for folder in present}
    _refuse_empty(class_root, inside)
    _refuse_wrong_level(class_root, inside)
    folders = list(classes) if classes is not None else _folders_of_all_splits(root, split, present, ignored)
    unknown = sorted(set(present) - set(folders))
    if unknown:
        raise DataError(f"{class_root} holds {len(unknown)} folders that are no classes of it: {_some(unknown)}")
    paths = [_join(split, folder, path) for folder in present for path in inside[folder]]
    label = {folder: position for position, folder in enumerate(folders)}
    labels = np.repeat([label[folder] for folder in present], [len(inside[folder]) for folder in present])
    return FileDataset(name, root, paths, labels, _titled(folders, titles))


def tree_splits(root: Path) -> list[str]:
    """The split folders of a tree, train, val, test first; empty where its folders are classes.

    A class may be called "train": split names count where all folders have one, or where such a folder holds folders
    of images.
    """
    folders = visible_folders(root)
    named = [folder for folder in folders if canonical_split(folder)]
    nested = any(has_images_below(root / f / inner) for f in named for inner in visible_folders(root / f))
    return sorted(named, key=split_rank) if named and (nested or len(named) == len(folders)) else []


def _matches(source: object) -> bool:
    if not isinstance(source, str) or not Path(source).is_dir():
        return False
    root = Path(source)
    return any(has_images_below(root / folder) for folder in visible_folders(root))


def _open(source: object, split: str | None) -> ImageDataset:
    root = Path(str(source))
    _refuse_lone_images(root)
    return open_tree(root, split)


def _refuse_lone_images(root: Path) -> None:
    """A dataset without its lists: the folder of all pictures is no class."""
    folders = visible_folders(root)
    if len(folders) == 1 and folders[0] in _ALL_IMAGES and images_in(root / folders[0]):
        raise DataError(
            f"source {root} holds the folder {folders[0]} and nothing that says what is on its images; expected the "
            f"lists of the dataset beside it ({_LISTS}), or {root / folders[0]} for images without labels"
        )


def _refuse_empty(root: Path, inside: Mapping[str, list[str]]) -> None:
    empty = [folder for folder, paths in inside.items() if not paths]
    if empty:
        raise DataError(
            f"source {root} has {len(empty)} of {len(inside)} class folders without images: {_some(empty)}; "
            f"looked for {extensions()}"
        )


def _refuse_wrong_level(root: Path, inside: Mapping[str, list[str]]) -> None:
    """Classes may keep their images in one inner folder of the same name each (class/images/*), nothing deeper."""
    inner = {path.rpartition("/")[0] for paths in inside.values() for path in paths}
    same_inner = len(inner) == 1 and "/" not in next(iter(inner))
    if any("/" not in path for paths in inside.values() for path in paths) or (same_inner and len(inside) > 1):
        return
    raise DataError(
        f"source {root} is one level too high: its folders hold folders of images, not images; "
        f"expected the folder that holds the class folders, such as {root / next(iter(inside))}"
    )


def _folders_of_all_splits(root: Path, split: str | None, present: list[str], ignored: Collection[str]) -> list[str]:
    if split is None:
        return present
    return sorted({folder for name in tree_splits(root) for folder in visible_folders(root / name)} - set(ignored))


def _titled(folders: list[str], titles: Mapping[str, str] | None) -> list[str]:
    if titles is None:
        return folders
    unknown = [folder for folder in folders if folder not in titles]
    if unknown:
        raise DataError(f"classnames.txt has no line for {len(unknown)} class folders: {_some(unknown)}")
    return [titles[folder] for folder in folders]


def _join(*parts: str | None) -> str:
    return "/".join(part for part in parts if part)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


LAYOUT = Layout(
    name="class folders",
    looks_for="class folders: ROOT/CLASS/*.jpg or ROOT/{train,val,test}/CLASS/*.jpg",
    matches=_matches,
    splits=lambda source: tree_splits(Path(str(source))),
    open=_open,
    precedence=2,
)

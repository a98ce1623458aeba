"""`open_images`: finds the layout of a source and opens it."""

from __future__ import annotations

import glob
import importlib
import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchsae.data import layouts, slices
from patchsae.data.base import DataError, ImageDataset
from patchsae.data.decode import is_image_name
from patchsae.data.files import visible_folders
from patchsae.data.layout import UNNAMED, Layout, canonical_split, choose_split
from patchsae.disk.claims import FalseClaim

_MOST_DATASETS = 50  # a folder that holds more folders is not taken for a collection of datasets, and not searched


def open_images(source: object, split: str | None = None, outside: bool = False) -> ImageDataset:
    """Opens images of any layout in `patchsae.data.layouts`.

    Args:
        source: a folder of class folders (with or without train/val/test above them), a folder of images, a parquet
            file, glob or folder of shards in Hugging Face's image layout, its imagefolder with metadata, a CoOp
            directory (split_zhou_*.json) or that file, ImageNet, its variants, CIFAR and the datasets of CoOp as their
            authors publish them and torchvision leaves them on the disk, a `save_to_disk` folder, a
            `datasets.Dataset` or `DatasetDict`, or "shapes" / "shapes:SPLIT?option=value" (a folder of that name is
            "./shapes").
            A split may follow the source after a colon: "pets:test".
        split: one of `splits(source)`; "val" also finds "validation". Not needed where there is one or none. A slice
            such as "train[:80%]" or "[40000:]" takes a part of it; see `patchsae.data.slices`.
        outside: also read images that are not below the source, where a file of it names them so.

    Raises:
        Flawed: class folders without images, listed images that are missing; its `rest` is the dataset without them.
        SplitError: a split that is missing or not there.
        DataError: nothing there, no layout recognised, a folder above the dataset, a file that claims what it does not
            hold or names images elsewhere, labels or class folders that do not fit together.
    """
    split, part = slices.cut(split)
    with _said_of(source):
        source, split = source_and_split(source, split)
        layout = find_layout(source)
        chosen = choose_split(split, layout.splits(source), describe(source), layout.default_split)
        dataset = layout.open(source, chosen, outside)
    return dataset if part is None else part.of(dataset)


def splits(source: object) -> list[str]:
    """The split names of a source: train, val, test first; the one named in "SOURCE:SPLIT"; empty for one piece."""
    with _said_of(source):
        source, split = source_and_split(source, None)
        available = find_layout(source).splits(source)
        return available if split is None else [str(choose_split(split, available, describe(source)))]


def find_layout(source: object) -> Layout:
    """The first layout, by precedence, that recognises a source.

    Raises:
        DataError: none does; the message says what is there and what was looked for, or which folders in it are
            datasets.
    """
    known = all_layouts()
    named = [layout for layout in known if layout.precedence < UNNAMED]
    for layout in named:
        if layout.matches(source):
            return layout
    _refuse_folder_of_datasets(source, named)
    for layout in known:
        if layout.matches(source):
            return layout
    looked_for = "\n".join(f"  - {layout.looks_for}" for layout in known)
    raise DataError(f"source {describe(source)}: {_what_came(source)}. Expected one of:\n{looked_for}")


def all_layouts() -> list[Layout]:
    """Every LAYOUT in the files of `patchsae.data.layouts`, by precedence, then name."""
    names = [module.name for module in pkgutil.iter_modules(layouts.__path__)]
    found = [importlib.import_module(f"{layouts.__name__}.{name}").LAYOUT for name in names]
    return sorted(found, key=lambda layout: (layout.precedence, layout.name))


@contextmanager
def _said_of(source: object) -> Iterator[None]:
    """Whatever keeps a source from being opened is a DataError."""
    try:
        yield
    except DataError:
        raise
    except FalseClaim as error:  # names the file
        raise DataError(str(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"source {describe(source)} cannot be opened: {error}") from error


def describe(source: object) -> str:
    """A source in a message: the path, or the type of the object."""
    return str(source) if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"


def is_shapes(source: str) -> bool:
    """Whether a source names the shapes world, whatever lies on the disk under that name ("./shapes" is a folder)."""
    return source == "shapes" or source.startswith(("shapes:", "shapes?"))


def source_and_split(source: object, split: str | None) -> tuple[object, str | None]:
    """Takes "SOURCE:SPLIT" apart, where SOURCE exists and the whole does not; leaves other sources as they are.

    Raises:
        DataError: `split` names another one.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        return source, split
    if is_shapes(source):
        return source, split
    source = os.path.expanduser(source)
    base, colon, tail = source.rpartition(":")
    if not colon or not base or "/" in tail or os.path.exists(source) or not (os.path.exists(base) or glob.glob(base)):
        return source, split
    if split not in (None, tail):
        raise DataError(f"split is {split!r}, but source {source} names {tail!r}; expected the same or only one")
    return base, tail


def _refuse_folder_of_datasets(source: object, named: list[Layout]) -> None:
    """Folders of pictures are easily taken for classes, so a folder above a named dataset is found before that."""
    inside = list(_named_inside(Path(source), named, levels=2)) if isinstance(source, str) and source else []
    if inside:
        folders = "\n".join(f"  - {path}: {layout.name}" for path, layout in inside)
        raise DataError(
            f"source {source} is a folder above the dataset, one or two levels too high; expected\n{folders}"
        )


def _named_inside(root: Path, named: list[Layout], levels: int) -> Iterator[tuple[Path, Layout]]:
    folders = visible_folders(root) if root.is_dir() else []
    if len(folders) > _MOST_DATASETS:
        return
    for folder in folders:
        path = root / folder
        if not os.access(path, os.R_OK | os.X_OK):  # lost+found, say
            continue
        layout = next((layout for layout in named if layout.matches(str(path))), None)
        if layout is not None and not canonical_split(folder):
            yield path, layout
        elif levels > 1:
            yield from _named_inside(path, named, levels - 1)


def _what_came(source: object) -> str:
    if not isinstance(source, str):
        return "not a dataset this package knows"
    path = Path(source)
    if glob.has_magic(source) and not path.exists():
        return "no file matches this pattern"
    if not path.exists():
        return "no such file or folder"
    if path.is_file():
        return "a single image, not a dataset" if is_image_name(path.name) else "a file of another kind"
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry.name for entry in entries if entry.is_dir()]
    named = f" ({', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''})" if folders else ""
    files = len(entries) - len(folders)
    return f"no images found in this folder: it holds {len(folders)} folders{named} and {files} other files"

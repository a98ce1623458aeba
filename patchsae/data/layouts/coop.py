"""CoOp directories: split_zhou_*.json = {"train": [[path, label, classname], ...], "val": ..., "test": ...}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.files import visible_folders
from patchsae.data.layout import Layout, dataset_name, split_rank
from patchsae.data.listed import Listing, open_listing, read_json, refuse_outside
from patchsae.disk.claims import whole_number
from patchsae.disk.names import spoken

_PREFIX = "split_zhou_"
_PROBES = 16
_IMAGE_FOLDERS = {
    "Caltech101": "101_ObjectCategories",
    "DescribableTextures": "images",
    "EuroSAT": "2750",
    "Food101": "images",
    "OxfordFlowers": "jpg",
    "OxfordPets": "images",
    "SUN397": "SUN397",
    "UCF101": "UCF-101-midframes",
}

Entries = list[tuple[str, int, str]]


def _matches(source: object) -> bool:
    return isinstance(source, str) and bool(_split_files(Path(source)))


def _split_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob(f"{_PREFIX}*.json"))
    is_one = path.is_file() and path.name.startswith(_PREFIX) and path.suffix == ".json"
    return [path] if is_one else []


def _splits(source: object) -> list[str]:
    return sorted(_read(source)[1], key=split_rank)


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    path, by_split = _read(source)
    if split is None:
        raise DataError(f"{path} has no splits; expected an object with train, val and test")
    classnames = _classnames(path, by_split)
    entries = by_split[split]
    paths, labels = [image for image, _, _ in entries], [label for _, label, _ in entries]
    if not outside:
        refuse_outside(path.parent, paths, path)
    root = _image_root(path, entries)
    name = dataset_name(_dataset(path), split)
    return open_listing(name, root, Listing(path, paths, labels, classnames), outside)


def _dataset(path: Path) -> str:
    """ "OxfordPets" of split_zhou_OxfordPets.json, whatever the folder is called: templates are found by it."""
    return path.stem.removeprefix(_PREFIX)


def _read(source: object) -> tuple[Path, dict[str, Entries]]:
    files = _split_files(Path(str(source)))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"source {source} holds {len(files)} split files ({names}); expected one: give its path")
    path = files[0]
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected an object with train, val and test")
    wrong = [split for split, items in content.items() if not isinstance(items, list)]
    if wrong:
        raise DataError(f"{path} has a {type(content[wrong[0]]).__name__} under {wrong[0]!r}; expected a list")
    return path, {split: [_entry(path, split, item) for item in items] for split, items in content.items()}


def _entry(path: Path, split: str, item: object) -> tuple[str, int, str]:
    if not (isinstance(item, list) and [type(part) for part in item] == [str, int, str]):
        raise DataError(f"{path} has {item!r} in {split!r}; expected [path, label, classname]")
    return item[0], item[1], item[2]


def _classnames(path: Path, by_split: dict[str, Entries]) -> list[str]:
    """Names by label over all splits, as prompts say them. Two labels may share a name; they stay two classes."""
    names: dict[int, str] = {}
    most = sum(map(len, by_split.values())) - 1
    for entries in by_split.values():
        for image, label, name in entries:
            whole_number(path, f"the label of {image!r}", label, most)
            if names.setdefault(label, name) != name:
                raise DataError(f"{path} calls label {label} both {names[label]!r} and {name!r}; expected one name")
    if sorted(names) != list(range(len(names))):
        missing = sorted(set(range(max(names))) - set(names))
        raise DataError(f"{path} has labels {min(names)} .. {max(names)} without {missing[:5]}; expected 0 .. C - 1")
    return [spoken(names[label]) for label in range(len(names))]


def _image_root(path: Path, entries: Entries) -> Path:
    """The folder that the paths are relative to: the dataset's own (StanfordCars), else an image folder in it.

    It is the folder under which most of a few probes exist.
    """
    if not entries:
        return path.parent
    probes = [entry[0] for entry in entries[:: max(1, len(entries) // _PROBES)]]
    candidates = list(_candidates(path.parent))
    found = [sum((folder / probe).is_file() for probe in probes) for folder in candidates]
    if max(found) == 0:
        tried = ", ".join(str(folder) for folder in candidates[:4]) + " ..." * (len(candidates) > 4)
        folder = path.parent / _IMAGE_FOLDERS.get(_dataset(path), "")
        raise DataError(
            f"{path} lists {len(entries):,} images, and none of those looked for are there: the first is "
            f"{probes[0]!r}, no such file below {tried}; expected {folder / probes[0]}"
        )
    return candidates[found.index(max(found))]


def _candidates(root: Path) -> Iterator[Path]:
    yield root
    first = [root / name for name in visible_folders(root)]
    yield from first
    for folder in first[:50]:
        yield from (folder / name for name in visible_folders(folder)[:50])


LAYOUT = Layout(
    name="CoOp",
    looks_for="a CoOp directory: ROOT/split_zhou_*.json and its images, or that file",
    matches=_matches,
    splits=_splits,
    open=_open,
)

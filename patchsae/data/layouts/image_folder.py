"""Hugging Face's imagefolder with metadata: images, and metadata.{jsonl,csv,parquet} that says what is on them.

The table lies beside the images, or in every split's folder; its column file_name holds paths below its own folder.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.columns import Labels, features_of_schema, label_column, read_labels
from patchsae.data.files import has_images_below, images_below, loose_images, visible_folders
from patchsae.data.layout import Layout, canonical_split, dataset_name, split_rank
from patchsae.data.layouts.class_folders import open_tree
from patchsae.data.listed import Listing, open_listing, parse_json, read_text
from patchsae.data.row_groups import open_parquet
from patchsae.errors import brief
from patchsae.words import counted

_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_PATH = "file_name"
_WHOLE = re.compile(r"-?\d{1,18}")


def _matches(source: object) -> bool:
    return isinstance(source, str) and Path(source).is_dir() and bool(_folders(Path(source)))


def _folders(root: Path) -> list[str]:
    """The folders with a table: "" for `root` itself, else those of the splits."""
    if _file(root) is not None:
        return [""] if has_images_below(root) else []
    named = [folder for folder in visible_folders(root) if canonical_split(folder) and _file(root / folder)]
    return sorted((folder for folder in named if has_images_below(root / folder)), key=split_rank)


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _splits(source: object) -> list[str]:
    root = Path(str(source))
    folders = _folders(root)
    if folders != [""]:
        return folders
    _, paths, _ = _rows(root, "")
    first = {path.partition("/")[0] for path in paths}
    return sorted(first, key=split_rank) if first and all(map(canonical_split, first)) else []


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    root = Path(str(source))
    tables = [_rows(root, folder) for folder in _folders(root)]
    paths = [path for _, named, _ in tables for path in named]
    found = _labels(tables)
    chosen = [i for i, path in enumerate(paths) if split is None or path.startswith(f"{split}/")]
    file = next((f for f, _, _ in tables if split is None or f.parent == root or f.parent.name == split), tables[0][0])
    if found is None or found.classnames is None:
        dataset = _by_folders(root, split)
        dataset.notes += (f"{file} has no column of classes, such as label: they are those of the folders, if any",)
        return dataset
    listing = Listing(file, [paths[i] for i in chosen], found.labels[chosen].tolist(), found.classnames)
    dataset = open_listing(dataset_name(root.resolve().name, split), root, listing, outside)
    dataset.notes = (*found.notes, *_unlisted(root, split, listing))
    return dataset


def _by_folders(root: Path, split: str | None) -> ImageDataset:
    inside = root / split if split else root
    return open_tree(root, split) if any(map(has_images_below, _inner(inside))) else loose_images(root, split)


def _inner(folder: Path) -> list[Path]:
    return [folder / name for name in visible_folders(folder)]


def _unlisted(root: Path, split: str | None, listing: Listing) -> Iterator[str]:
    listed = set(listing.paths)
    prefix = f"{split}/" if split else ""
    count = sum(prefix + path not in listed for path in images_below(root / prefix))
    if count:
        yield f"not taken: {counted(count, 'image')} that {listing.file} does not name"


def _labels(tables: list[tuple[Path, list[str], pa.ChunkedArray | None]]) -> Labels | None:
    """The labels of all splits together; None where one has no such column."""
    columns = [column for _, _, column in tables if column is not None]
    if len(columns) < len(tables):
        return None
    chunks = [chunk for column in columns for chunk in column.chunks]
    try:
        values = pa.chunked_array(chunks, type=columns[0].type)
    except (pa.ArrowInvalid, TypeError, ValueError):
        kinds = ", ".join(sorted({str(column.type) for column in columns}))
        raise DataError(
            f"{tables[0][0]} and those of the other splits have labels of different types: {kinds}"
        ) from None
    return read_labels(values, None, str(tables[0][0]))


def _rows(root: Path, folder: str) -> tuple[Path, list[str], pa.ChunkedArray | None]:
    """(table, paths below `root`, label column if there is one) of the table in a folder."""
    file = _file(root / folder)
    assert file is not None  # `_folders` said so
    table = _READ[file.suffix](file)
    if _PATH not in table.column_names:
        raise DataError(f"{file} has columns {', '.join(table.column_names)}; expected one called {_PATH}")
    names = table.column(_PATH).to_pylist()
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise DataError(f"{file} has {wrong[0]!r} under {_PATH}; expected a path")
    label = label_column(features_of_schema(table.schema.remove(table.schema.get_field_index(_PATH))))
    paths = [f"{folder}/{name}" if folder else name for name in names]
    return file, paths, None if label is None else table.column(label)


def _read_jsonl(file: Path) -> pa.Table:
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        row = parse_json(f"{file} line {number}", line) if line.strip() else None
        if row is not None and not isinstance(row, dict):
            raise DataError(f"{file} line {number} is a {type(row).__name__}; expected an object")
        rows += [row] if row else []
    keys = {key for row in rows for key in row}
    return _table(file, {key: [row.get(key) for row in rows] for key in keys})


def _read_csv(file: Path) -> pa.Table:
    try:
        rows = list(csv.DictReader(read_text(file).splitlines()))
    except csv.Error as error:
        raise DataError(f"{file} is no CSV: {brief(error)}") from error
    columns = {key: [row.get(key) or None for row in rows] for key in (rows[0] if rows else ()) if key is not None}
    return _table(file, {key: values if key == _PATH else _typed(values) for key, values in columns.items()})


def _typed(values: list[Any]) -> list[Any]:
    """Whole numbers where a column of texts holds nothing else."""
    whole = all(value is None or (isinstance(value, str) and _WHOLE.fullmatch(value)) for value in values)
    return [None if value is None else int(value) for value in values] if whole else values


def _table(file: Path, columns: dict[str, list[Any]]) -> pa.Table:
    try:
        return pa.table({key: pa.array(values) for key, values in columns.items()})
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"{file} has a column of mixed kinds: {brief(error)}") from error


_READ: dict[str, Callable[[Path], pa.Table]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": lambda file: open_parquet(file).read(),
}

LAYOUT = Layout(
    name="image folder with metadata",
    looks_for="Hugging Face's imagefolder: images and metadata.{jsonl,csv,parquet} in ROOT or ROOT/{train,val,test}",
    matches=_matches,
    splits=_splits,
    open=_open,
    precedence=1,
)

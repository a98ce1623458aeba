"""Hugging Face `datasets`: a Dataset or DatasetDict in memory, or a folder written by `save_to_disk`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from patchsae.data.base import BadImage, DataError, ImageDataset, Sample, position
from patchsae.data.columns import Labels, choose_columns, read_labels
from patchsae.data.decode import decode_cell
from patchsae.data.layout import Layout, dataset_name, split_rank
from patchsae.data.listed import read_json, refuse_outside
from patchsae.errors import brief


class HuggingFaceDataset(ImageDataset):
    """A `datasets.Dataset` with an Image column. Ids are `NAME#row`.

    Bytes are decoded here, not by `datasets`, so that damaged images are named and pictures come out upright.
    """

    def __init__(self, name: str, table: Any, root: Path, outside: bool) -> None:
        columns = choose_columns(table.features.to_dict(), name)
        found = Labels(np.full(len(table), -1), None)
        if columns.label is not None:
            values = table.select_columns([columns.label]).with_format("arrow")[:].column(0)
            values.validate(full=True)
            found = read_labels(values, columns.classnames, name)
        super().__init__(name, found.labels, found.classnames)
        self.notes = found.notes
        self.root, self.outside = root, outside
        image = type(table.features[columns.image])(decode=False)
        self.table = table.select_columns([columns.image]).cast_column(columns.image, image).with_format("arrow")

    def ids(self, i: int) -> str:
        return f"{self.name}#{position(i, len(self))}"

    def sample(self, i: int) -> Sample:
        id = self.ids(i)
        try:
            row = self.table[int(i)].column(0)
            row.validate(full=True)  # Arrow believes a file's offsets otherwise, and reads memory that is not its own
            cell = row[0].as_py()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise BadImage(id, f"its row cannot be read: {brief(error)}") from error
        return Sample(decode_cell(cell, self.root, id, self.outside), int(self.labels[i]), id)


def _matches(source: object) -> bool:
    if isinstance(source, str):
        names = ("dataset_dict.json", "state.json")
        return any((Path(source) / name).is_file() for name in names)
    return type(source).__module__.partition(".")[0] == "datasets"


def _table(source: object) -> Any:
    if not isinstance(source, str):
        return source
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"source {source} was written by save_to_disk; expected: pip install 'patchsae[hub]'"
        ) from error
    _refuse_outside(Path(source))
    try:
        return datasets.load_from_disk(source)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        raise DataError(f"source {source} cannot be opened by datasets: {brief(error)}") from error


def _refuse_outside(root: Path) -> None:
    """The splits and data files that a saved dataset says it has are in its own folder."""
    splits = _told(root / "dataset_dict.json", "splits")
    refuse_outside(root, splits, root / "dataset_dict.json")
    for folder in [root / split for split in splits] or [root]:
        files = [file.get("filename") for file in _told(folder / "state.json", "_data_files", dict)]
        refuse_outside(folder, [str(file) for file in files], folder / "state.json")


def _told(path: Path, key: str, kind: type = str) -> list[Any]:
    """The list under a key of a JSON file; empty where there is no such file."""
    content = read_json(path) if path.is_file() else {key: []}
    listed = content.get(key) if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(item, kind) for item in listed):
        raise DataError(f"{path} holds no list of {kind.__name__} under {key!r}; expected what save_to_disk writes")
    return listed


def _splits(source: object) -> list[str]:
    table = _table(source)
    return sorted(table, key=split_rank) if isinstance(table, dict) else []


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    table = _table(source)
    part = table[split] if isinstance(table, dict) else table
    if not hasattr(part, "select_columns") or not hasattr(part, "__len__"):
        raise DataError(f"source is a {type(part).__name__}; expected a datasets.Dataset, which has a length")
    name = Path(source).resolve().name if isinstance(source, str) else part.info.dataset_name or "dataset"
    # the images of an object of the caller's own program are wherever it put them
    root, anywhere = (Path(source), outside) if isinstance(source, str) else (Path(), True)
    return HuggingFaceDataset(dataset_name(name, split), part, root, anywhere)


LAYOUT = Layout(
    name="Hugging Face dataset",
    looks_for="a folder written by datasets' save_to_disk, or a datasets.Dataset object",
    matches=_matches,
    splits=_splits,
    open=_open,
)

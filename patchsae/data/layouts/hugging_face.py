"""Hugging Face `datasets`: a Dataset or DatasetDict in memory, or a folder written by `save_to_disk`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from patchsae.data.base import DataError, ImageDataset, Sample
from patchsae.data.columns import choose_columns, labels_and_names
from patchsae.data.decode import decode_cell
from patchsae.data.layout import Layout, dataset_name, split_rank


class HuggingFaceDataset(ImageDataset):
    """A `datasets.Dataset` with an Image column. Ids are `NAME#row`.

    Bytes are decoded here, not by `datasets`, so that damaged images are named and pictures come out upright.
    """

    def __init__(self, name: str, table: Any) -> None:
        columns = choose_columns(table.features.to_dict(), name)
        labels, classnames = np.full(len(table), -1), None
        if columns.label is not None:
            values = table.select_columns([columns.label]).with_format("arrow")[:].column(0)
            labels, classnames = labels_and_names(values, columns.classnames, name)
        super().__init__(name, labels, classnames)
        image = type(table.features[columns.image])(decode=False)
        self.column = columns.image
        self.table = table.select_columns([columns.image]).with_format(None).cast_column(columns.image, image)

    def ids(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"position {i} is outside 0 .. {len(self) - 1}")
        return f"{self.name}#{i}"

    def sample(self, i: int) -> Sample:
        id = self.ids(i)
        return Sample(decode_cell(self.table[int(i)][self.column], Path(), id), int(self.labels[i]), id)


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
    return datasets.load_from_disk(source)


def _splits(source: object) -> list[str]:
    table = _table(source)
    return sorted(table, key=split_rank) if isinstance(table, dict) else []


def _open(source: object, split: str | None) -> ImageDataset:
    table = _table(source)
    part = table[split] if isinstance(table, dict) else table
    if not hasattr(part, "select_columns") or not hasattr(part, "__len__"):
        raise DataError(f"source is a {type(part).__name__}; expected a datasets.Dataset, which has a length")
    name = Path(source).resolve().name if isinstance(source, str) else part.info.dataset_name or "dataset"
    return HuggingFaceDataset(dataset_name(name, split), part)


LAYOUT = Layout(
    name="Hugging Face dataset",
    looks_for="a folder written by datasets' save_to_disk, or a datasets.Dataset object",
    matches=_matches,
    splits=_splits,
    open=_open,
)

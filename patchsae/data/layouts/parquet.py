"""Parquet in Hugging Face's image layout: a file, a glob, or a folder of shards."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchsae.data.base import BadImage, DataError, ImageDataset, ReadGroups, Sample
from patchsae.data.columns import Columns, choose_columns, features_of_schema, labels_and_names
from patchsae.data.decode import decode_cell
from patchsae.data.layout import Layout, canonical_split, dataset_name, split_rank
from patchsae.data.row_groups import RowGroups, open_parquet

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(-[0-9a-f]+)?")


class ParquetDataset(ImageDataset):
    """Rows of parquet shards. Ids are `path/of/shard.parquet#row`, the path relative to what was opened.

    The image column is a struct of bytes and path (bytes come first; a lone path is looked up beside the shard) or
    plain bytes.
    """

    def __init__(self, name: str, root: Path, shards: list[Path]) -> None:
        source = str(shards[0])
        columns = _columns(shards)
        labels, classnames = _labels(shards, columns, source)
        super().__init__(name, labels, classnames)
        self.shards = [shard.relative_to(root).as_posix() for shard in shards]
        self.rows = RowGroups(shards, columns.image)

    def ids(self, i: int) -> str:
        shard, row = self.rows.place(i)
        return f"{self.shards[shard]}#{row}"

    def sample(self, i: int) -> Sample:
        id = self.ids(i)
        try:
            cell = self.rows[i]
        except (OSError, pa.ArrowException) as error:
            raise BadImage(id, f"its row group cannot be read: {error}") from error
        shard, _ = self.rows.place(i)
        return Sample(decode_cell(cell, Path(self.rows.shards[shard]).parent, id), int(self.labels[i]), id)

    @property
    def read_groups(self) -> ReadGroups | None:
        return self.rows.read_groups


def _matches(source: object) -> bool:
    return isinstance(source, str) and bool(_shards(source))


def _shards(source: str) -> list[Path]:
    """The parquet files that a source means, sorted; a folder's own, then those in data/ or other folders in it."""
    path = Path(source)
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    if path.is_dir():
        found = [*path.glob("*.parquet"), *path.glob("*/*.parquet")]
        return sorted(shard for shard in found if not shard.name.startswith((".", "_")))
    return sorted(Path(match) for match in glob.glob(source) if match.endswith(".parquet")) if source else []


def _by_split(source: str) -> dict[str, list[Path]]:
    """Shards by split name; "" for those without one."""
    groups: dict[str, list[Path]] = {}
    for shard in _shards(source):
        groups.setdefault(_split_of(shard), []).append(shard)
    if "" in groups and len(groups) > 1:
        raise DataError(
            f"source {source} mixes parquet files with and without a split in their names, such as "
            f"{groups[''][0].name}; expected SPLIT-00000-of-00001.parquet for all, or a glob"
        )
    return groups


def _split_of(shard: Path) -> str:
    """The split in a shard's name: train-00000-of-00002, cifar10-test, validation; else in its folder's, train/0000."""
    numbered = _SHARD.fullmatch(shard.stem)
    if numbered:
        return numbered["split"]
    words = [word for word in re.split(r"[-_.]", shard.stem) if canonical_split(word)]
    if len(words) == 1:
        return words[0]
    return shard.parent.name if canonical_split(shard.parent.name) else ""


def _splits(source: object) -> list[str]:
    return sorted((split for split in _by_split(str(source)) if split), key=split_rank)


def _open(source: object, split: str | None) -> ImageDataset:
    path = Path(str(source))
    shards = _by_split(str(source))[split or ""]
    root = path if path.is_dir() else Path(*_common_parts(shards))
    name = path.stem if path.is_file() else dataset_name(root.resolve().name, split)
    return ParquetDataset(name, root, shards)


def _common_parts(shards: list[Path]) -> list[str]:
    folders = [shard.parent.parts for shard in shards]
    same = [len(set(level)) == 1 for level in zip(*folders, strict=False)]
    depth = same.index(False) if False in same else len(same)
    return list(folders[0][:depth])


def _columns(shards: list[Path]) -> Columns:
    first = _columns_of(shards[0])
    for shard in shards[1:]:
        other = _columns_of(shard)
        if other != first:
            raise DataError(f"{shard} has columns {other}; expected those of {shards[0]}: {first}")
    return first


def _columns_of(shard: Path) -> Columns:
    schema = open_parquet(shard).schema_arrow
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        info = json.loads(written) if written else {}
    except ValueError as error:
        raise DataError(f"{shard} has 'huggingface' metadata that is not JSON: {error}") from error
    return choose_columns((info.get("info") or {}).get("features") or features_of_schema(schema), str(shard))


def _labels(shards: list[Path], columns: Columns, source: str) -> tuple[np.ndarray, list[str] | None]:
    if columns.label is None:
        return np.full(sum(open_parquet(shard).metadata.num_rows for shard in shards), -1), None
    parts = [open_parquet(shard).read(columns=[columns.label]).column(0) for shard in shards]
    values = pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)
    return labels_and_names(values, columns.classnames, source)


LAYOUT = Layout(
    name="parquet",
    looks_for="parquet in Hugging Face's image layout: FILE.parquet, a glob of shards, or a folder of them",
    matches=_matches,
    splits=_splits,
    open=_open,
    precedence=1,
)

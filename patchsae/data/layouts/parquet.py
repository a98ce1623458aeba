"""Parquet in Hugging Face's image layout: a file, a glob, or a folder of shards."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from patchsae.data.base import BadImage, DataError, ImageDataset, ReadGroups, Sample
from patchsae.data.columns import Columns, Labels, choose_columns, features_of_schema, read_labels
from patchsae.data.decode import decode_cell
from patchsae.data.layout import Layout, canonical_split, dataset_name, split_rank
from patchsae.data.listed import parse_json
from patchsae.data.row_groups import RowGroups, open_parquet
from patchsae.disk.claims import require_held
from patchsae.disk.names import written
from patchsae.errors import brief

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(-[0-9a-f]+)?")
_MOST_ROWS_A_BYTE = 8  # the same small picture over and over is stored once


class ParquetDataset(ImageDataset):
    """Rows of parquet shards. Ids are `path/of/shard.parquet#row`, the path relative to what was opened.

    The image column is a struct of bytes and path (bytes come first; a lone path is looked up beside the shard) or
    plain bytes.
    """

    def __init__(self, name: str, root: Path, shards: list[Path], outside: bool) -> None:
        columns = _columns(shards)
        found = _labels(shards, columns)
        super().__init__(name, found.labels, found.classnames)
        self.notes = found.notes
        self.outside = outside
        self.shards = [shard.relative_to(root).as_posix() for shard in shards]
        self.rows = RowGroups(shards, columns.image)

    def ids(self, i: int) -> str:
        shard, row = self.rows.place(i)
        return written(f"{self.shards[shard]}#{row}")

    def sample(self, i: int) -> Sample:
        id = self.ids(i)
        try:
            cell = self.rows[i]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise BadImage(id, f"its row group cannot be read: {brief(error)}") from error
        folder = Path(self.rows.shards[self.rows.place(i)[0]]).parent
        return Sample(decode_cell(cell, folder, id, self.outside), int(self.labels[i]), id)

    @property
    def read_groups(self) -> ReadGroups | None:
        return self.rows.read_groups


def _matches(source: object) -> bool:
    return isinstance(source, str) and bool(_shards(source))


def _shards(source: str) -> list[Path]:
    """The parquet files that a source means, sorted; a folder's own, then those in data/ or other folders in it.

    A folder's metadata.parquet is about image files beside it: another layout.
    """
    path = Path(source)
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    if path.is_dir():
        found = [*path.glob("*.parquet"), *path.glob("*/*.parquet")]
        return sorted(s for s in found if not s.name.startswith((".", "_")) and s.name != "metadata.parquet")
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


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    path = Path(str(source))
    shards = _by_split(str(source))[split or ""]
    root = path if path.is_dir() else Path(*_common_parts(shards))
    name = dataset_name(path.stem, None) if path.is_file() else dataset_name(root.resolve().name, split)
    return ParquetDataset(name, root, shards, outside)


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
    columns = choose_columns(_features(shard, schema), str(shard))
    absent = [name for name in (columns.image, columns.label) if name is not None and name not in schema.names]
    if absent:
        raise DataError(f"{shard} describes a column {absent[0]!r} that it does not have")
    return columns


def _features(shard: Path, schema: pa.Schema) -> Mapping[str, object]:
    """What Hugging Face wrote about the columns; where it did not, what their types tell."""
    text = (schema.metadata or {}).get(b"huggingface")
    found = parse_json(f"{shard}, 'huggingface' metadata", text) if text else {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) and found else features_of_schema(schema)


def _labels(shards: list[Path], columns: Columns) -> Labels:
    rows = [_rows(shard) for shard in shards]
    if columns.label is None:
        return Labels(np.full(sum(rows), -1), None)
    parts = [_column(shard, columns.label) for shard in shards]
    values = pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)
    return read_labels(values, columns.classnames, str(shards[0]))


def _column(shard: Path, name: str) -> pa.ChunkedArray:
    """A column; texts as a dictionary, in which one that a million rows share is held once."""
    kind = open_parquet(shard).schema_arrow.field(name).type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    try:
        return open_parquet(shard, name if is_text else None).read(columns=[name]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shard} has a column {name!r} that cannot be read: {brief(error)}") from error


def _rows(shard: Path) -> int:
    """How many rows a shard says that it has; an image takes more bytes than one."""
    rows = int(open_parquet(shard).metadata.num_rows)
    require_held(shard, f"the number of rows, {rows:,},", rows, _MOST_ROWS_A_BYTE * shard.stat().st_size)
    return rows


LAYOUT = Layout(
    name="parquet",
    looks_for="parquet in Hugging Face's image layout: FILE.parquet, a glob of shards, or a folder of them",
    matches=_matches,
    splits=_splits,
    open=_open,
    precedence=1,
)

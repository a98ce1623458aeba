"""Random access to one column of parquet shards, a row group at a time, within a memory budget."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchsae.data.base import DataError, ReadGroups, position
from patchsae.disk.claims import require_held, require_memory
from patchsae.errors import brief

BUDGET_BYTES = 256 << 20
"""Decompressed bytes that a process keeps. A row group larger than this is kept alone."""


class RowGroups:
    """Rows 0 .. n - 1 of a column over shards, in order.

    A process keeps the row groups it used last. Pickling carries the index of the groups, not what was read.

    Raises:
        DataError: a shard that is not parquet.
    """

    def __init__(self, shards: Sequence[Path], column: str, budget: int = BUDGET_BYTES) -> None:
        self.shards = [str(shard) for shard in shards]
        self.column = column
        self.budget = budget
        self._index(column)
        self._forget()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, row: int) -> object:
        """The value of a row as a Python object.

        Raises IndexError outside; OSError, ArrowException or FalseClaim if unreadable.
        """
        group, offset = self._locate(row)
        return self._column_of(group)[offset].as_py()

    def place(self, row: int) -> tuple[int, int]:
        """(number of the shard, row within the shard) of a row."""
        group, _ = self._locate(row)
        shard = self.shard_of[group]
        return shard, row - self.shard_starts[shard]

    @property
    def read_groups(self) -> ReadGroups | None:
        """The groups for a shuffled order; None where everything fits into the budget."""
        if sum(self.sizes) <= self.budget:
            return None
        return ReadGroups(np.array(self.starts, np.int64), max(1, self.budget // max(1, max(self.sizes))))

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_files", "_process")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _index(self, column: str) -> None:
        # Plain lists: for one value at a time, bisecting them is several times faster than numpy's search.
        self.starts = [0]
        self.sizes: list[int] = []
        self.shard_of: list[int] = []
        self.within: list[int] = []
        self.shard_starts: list[int] = []
        for number, shard in enumerate(self.shards):
            self.shard_starts.append(self.starts[-1])
            metadata = open_parquet(shard).metadata
            require_held(shard, "the list of row groups", metadata.num_row_groups, os.path.getsize(shard))
            for g in range(metadata.num_row_groups):
                group = metadata.row_group(g)
                self.starts.append(self.starts[-1] + group.num_rows)
                self.sizes.append(_column_bytes(group, column))
                self.shard_of.append(number)
                self.within.append(g)

    def _forget(self) -> None:
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._process = os.getpid()

    def _locate(self, row: int) -> tuple[int, int]:
        group = bisect_right(self.starts, position(row, len(self))) - 1
        return group, row - self.starts[group]

    def _column_of(self, group: int) -> pa.ChunkedArray:
        if self._process != os.getpid():  # a forked worker must not share file positions with its parent
            self._forget()
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        while self._kept and sum(self.sizes[g] for g in self._kept) + self.sizes[group] > self.budget:
            self._kept.popitem(last=False)
        if self.sizes[group] > self.budget:
            require_memory(f"row group {self.within[group]}", self.sizes[group])
        file = self._file(self.shard_of[group])
        table = file.read_row_group(self.within[group], columns=[self.column], use_threads=False)
        self._kept[group] = table.column(0)
        return self._kept[group]

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._files:
            if len(self._files) >= 16:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = open_parquet(self.shards[shard])
        self._files.move_to_end(shard)
        return self._files[shard]


def open_parquet(path: str | Path, texts: str | None = None) -> pq.ParquetFile:
    """Opens a shard; the column `texts`, where it is one, is read as a dictionary of its values.

    Raises DataError where it is missing, truncated or not parquet.
    """
    try:
        return pq.ParquetFile(path, read_dictionary=[] if texts is None else [texts])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable parquet file: {brief(error)}") from error


def _column_bytes(group: pq.RowGroupMetaData, column: str) -> int:
    """Decompressed size of a column (with its nested parts) in a row group."""
    leaves = [group.column(i) for i in range(group.num_columns)]
    return sum(leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)

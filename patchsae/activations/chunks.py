"""Reading a cache in the order of training: some shards at a time, each from its beginning to its end."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from patchsae.activations.index import CacheIndex
from patchsae.activations.packing import Packed, empty_packed
from patchsae.activations.shard import read_head, read_rows


@dataclass(frozen=True, eq=False)
class Chunk:
    """A stretch of the order of images, those of one process in memory."""

    begin: int
    end: int
    """Places in the order, [begin, end)."""
    places: np.ndarray
    """int64 [k], ascending: those that are in memory."""
    rows: np.ndarray
    """int64 [k]: where in memory."""
    ids: list[str]
    """[k], as in memory."""
    packed: Packed
    """[k, T, D]."""

    def copy(self, begin: int, end: int, out: Packed) -> list[str]:
        """Copy the images at the places begin .. end - 1, all in memory, to `out`; their ids."""
        first, last = np.searchsorted(self.places, (begin, end))
        rows = self.rows[first:last]
        index = torch.from_numpy(rows)
        torch.index_select(self.packed.tokens, 0, index, out=out.tokens)
        if self.packed.scale is not None and out.scale is not None:
            torch.index_select(self.packed.scale, 0, index, out=out.scale)
        return [self.ids[i] for i in rows.tolist()]


class ChunkReader:
    """Reads the images at places of an order that visits each shard once in a pass.

    Args:
        order: int64 [places], positions in the cache: image i of the shards one after another.
        starts: int64 [shards + 1], the position of each shard's first image.
    """

    def __init__(self, folder: Path, index: CacheIndex, order: np.ndarray, starts: np.ndarray) -> None:
        self._folder, self._index, self._order, self._starts = folder, index, order, starts

    def chunks(self, places: np.ndarray) -> Generator[Chunk, None, None]:
        """`places` [m], ascending, in the shortest chunks for which no shard is read twice in a pass.

        Every second chunk is in the same memory: one is valid until the next but one is begun.
        """
        memory = [self._memory(0), self._memory(0)]
        count = int(self._starts[-1])
        for epoch in range(places[0] // count if len(places) else 0, -(-len(self._order) // count)):
            part = self._order[epoch * count : (epoch + 1) * count]
            bounds = [0, *(_whole_shards(part, self._starts) + 1).tolist()]
            for begin, end in pairwise(bounds):
                within = places[np.searchsorted(places, epoch * count + begin) :]
                within = within[: np.searchsorted(within, epoch * count + end)]
                if len(within) == 0:
                    continue
                memory.reverse()
                if len(within) > len(memory[0].tokens):
                    memory[0] = self._memory(len(within))
                yield self._read(epoch * count + begin, epoch * count + end, within, memory[0][: len(within)])

    def _memory(self, images: int) -> Packed:
        """Kept and used again: the first touch of memory takes longer than reading the file into it."""
        return empty_packed(images, self._index.tokens, self._index.width, self._index.options.store)

    def _read(self, begin: int, end: int, places: np.ndarray, memory: Packed) -> Chunk:
        positions = self._order[places]
        by_position = np.argsort(positions)
        wanted = positions[by_position]  # every position once: a chunk lies within a pass
        ids: list[str] = []
        for number in np.unique(_shard_of(wanted, self._starts)).tolist():
            first, last = np.searchsorted(wanted, self._starts[number : number + 2])
            local = wanted[first:last] - self._starts[number]
            record = self._index.shards[number]
            head = read_head(self._folder / record.file, record.sha256)
            read_rows(head, local, memory.tokens[first:last])
            if memory.scale is not None and head.scale is not None:
                memory.scale[first:last] = head.scale[torch.from_numpy(local)]
            ids += [head.ids[i] for i in local.tolist()]
        return Chunk(begin, end, places, np.argsort(by_position), ids, memory)


def _whole_shards(part: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The places within a pass after which every shard that has begun has ended, the last place included."""
    if len(part) == 0:
        return np.empty(0, np.int64)
    shard = _shard_of(part, starts)
    last = np.zeros(len(starts) - 1, np.int64)
    last[shard] = np.arange(len(part))  # the last assignment stays
    return np.flatnonzero(np.maximum.accumulate(last[shard]) == np.arange(len(part)))


def _shard_of(positions: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.searchsorted(starts, positions, side="right") - 1

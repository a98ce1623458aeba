"""Looking through a cache, and writing anew what is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from patchsae import progress
from patchsae.activations.content import contents
from patchsae.activations.index import FILE, CacheIndex
from patchsae.activations.packing import DTYPES
from patchsae.activations.shard import DamagedShard, read_head, read_rows
from patchsae.activations.writer import put
from patchsae.disk import atomic
from patchsae.disk.locks import FolderLock

if TYPE_CHECKING:
    from patchsae.data import ImageDataset
    from patchsae.models.clip import SplitCLIP


def repair_cache(clip: SplitCLIP, dataset: ImageDataset, folder: Path, workers: int = 0) -> list[str]:
    """Read every complete shard of a cache and write the damaged and missing ones anew; their names.

    Raises FileNotFoundError where `folder` is no cache, CacheMismatch for another model or other images than it was
    written from, StageLocked where it is being written, OSError where there is no room.
    """
    index = CacheIndex.load(folder)
    index.require(clip, dataset)
    lock = FolderLock(folder)
    try:
        atomic.remove_partial(folder)
        damaged = [number for number, message in damage_of_shards(folder, index).items() if message]
        for content in contents(clip, dataset, index, damaged, workers):
            if content is not None:
                index = index.with_shard(content.number, put(folder, content))
                atomic.write_text(folder / FILE, index.text())
    finally:
        lock.release()
    return [index.shards[number].file for number in damaged]


def damage_of_shards(folder: Path, index: CacheIndex) -> dict[int, str]:
    """What is wrong with each shard, "" where nothing is."""
    found = {}
    with progress.track(len(index.shards), "cache check", unit="shards") as bar:
        for number, record in enumerate(index.shards):
            try:
                head = read_head(folder / record.file, record.sha256)
                read_rows(head, np.arange(record.images), torch.empty(head.shape, dtype=DTYPES[index.options.store]))
                found[number] = ""
            except DamagedShard as error:
                found[number] = str(error)
            bar.advance()
    return found

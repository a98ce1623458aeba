"""Writing a cache of activations: shard by shard, so that whatever stops it leaves a cache of fewer images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchsae import progress
from patchsae.activations.content import Content, contents
from patchsae.activations.index import FILE, CacheIndex, ShardRecord
from patchsae.activations.options import CacheOptions
from patchsae.activations.room import announce
from patchsae.activations.shard import write_shard
from patchsae.data import ImageDataset
from patchsae.data.left_out import left_out
from patchsae.disk import atomic
from patchsae.disk.runs import Stage
from patchsae.interrupt import Interrupted, StopRequest
from patchsae.words import counted

if TYPE_CHECKING:
    from patchsae.models.clip import SplitCLIP


def write_cache(
    clip: SplitCLIP,
    dataset: ImageDataset,
    out: Path,
    options: CacheOptions,
    *,
    origin: Mapping[str, Any] | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> CacheIndex:
    """Write the residual stream of a dataset to the folder `out`, or go on where a writer was stopped.

    Images are written in a shuffled order, so that any prefix is a random sample and a shard holds images of all kinds.
    A writer that goes on makes the same bytes as an unbroken one. The size is announced on standard error first.

    Args:
        out: receives ``index.json`` and the shards it names (``shard-00000.safetensors``, ...).
        origin: what opens the images and the model again; recorded for `repair_cache`.
        workers: processes that decode images; the bytes do not depend on it.
        overwrite: start afresh.

    Returns:
        The index of the complete cache.

    Raises:
        DiskFull: there is not enough room, found before anything is written, or the disk became full: the shards that
            are complete can be used, and the same call goes on.
        ConfigDiffers: `out` was begun from another model, other images or with other options.
        Interrupted: SIGINT or SIGTERM.
    """
    made_from = {**clip.metadata, "clip_fingerprint": clip.fingerprint, "dataset": dataset.fingerprint}
    settings = {**(origin or {}), **made_from, **asdict(options), "workers": workers}
    stage = Stage(out, "cache")
    if overwrite or not stage.finished:
        begun = (out / FILE).exists() and not overwrite
        known = CacheIndex.load(out) if begun else CacheIndex.of(clip, dataset, options, dict(origin or {}))
        announce(known, out, overwrite)
    with stage:
        if stage.begin(settings, overwrite, device=str(clip.device), may_differ=("workers",)):
            begun = (out / FILE).exists()
            index = CacheIndex.load(out) if begun else CacheIndex.of(clip, dataset, options, dict(origin or {}))
            index = _write(clip, dataset, index, stage, workers)
            stage.finish()
            for line in left_out(index.bad, index.images):
                print(line, file=sys.stderr)
    return CacheIndex.load(out)


def put(folder: Path, content: Content) -> ShardRecord:
    """Write a shard, atomically. Raises DiskFull, and OSError for what else the disk says."""
    path = folder / shard_name(content.number)
    with atomic.replacing(path, checksum=False) as temporary:  # the index and the shard itself hold its checksums
        sha256 = write_shard(temporary, content.packed, content.images, content.ids)
    return ShardRecord(path.name, len(content.ids), sha256)


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


def _write(clip: SplitCLIP, dataset: ImageDataset, index: CacheIndex, stage: Stage, workers: int) -> CacheIndex:
    numbers = range(len(index.shards), index.shard_count)
    done = min(len(index.shards) * index.shard_images, index.images)
    with StopRequest() as stop, progress.track(index.images, "cache", start=done) as bar:
        for content in stop.until_workers_die(contents(clip, dataset, index, numbers, workers)):
            if content is None:
                bar.advance(min(index.options.batch_size, index.images - bar.done))
            else:
                index = _add(index, content, stage)
            if stop.signum is not None:
                break
        if stop.signum is not None and not index.complete:
            raise Interrupted(stop.signum, f"cache: stopped after {_reached(index, stage.path)}")
    return index


def _add(index: CacheIndex, content: Content, stage: Stage) -> CacheIndex:
    """Write a shard and then the index that names it."""
    try:
        stage.own(shard_name(content.number))
        longer = index.with_shard(content.number, put(stage.path, content), content.bad)
        atomic.write_text(stage.own(FILE), longer.text())
    except atomic.DiskFull as error:
        raise atomic.DiskFull(f"{error}. Stopped after {_reached(index, stage.path)}") from error
    return longer


def _reached(index: CacheIndex, folder: Path) -> str:
    images = sum(record.images for record in index.shards)
    usable = f" ({counted(images, 'image')}), which can be trained on" if images else ""
    return (
        f"{len(index.shards):,} of {index.shard_count:,} shards in {folder}{usable}; "
        "the same command goes on from there"
    )

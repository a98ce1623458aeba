"""Tokens from a cache on disk: shards in a shuffled order, read from beginning to end, mixed in memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchsae.activations.ahead import ahead
from patchsae.activations.chunks import ChunkReader
from patchsae.activations.index import CacheIndex
from patchsae.activations.mixing import Share, token_batches
from patchsae.activations.packing import Packed, empty_packed
from patchsae.activations.plan import ALONE, DataPlace, StreamPlan, plan_of
from patchsae.activations.source import TokenBatch
from patchsae.activations.transfer import Upload, Uploads
from patchsae.data import BadImageRecord, ReadGroups, train_order

BUFFER_SHARDS = 4


class CachedTokens:
    """A cache of activations, as a `TokenSource`; no image and no tower is needed.

    A pass over the cache visits its shards in a shuffled order. `buffer_shards` of them at a time are in memory, where
    their images are shuffled, while a thread reads and verifies the next ones. All follows from the seed, so reading
    goes on exactly from any place. A data-parallel process reads its own images alone.

    Args:
        folder: what `write_cache` made; a prefix of a cache will do, with a warning.
        plan: which images, in which order, and how many tokens of each.
        parallel: which data-parallel process this is.
        device: where the tokens are wanted.
        buffer_shards: twice as many are in memory; the order depends on it.

    Raises:
        FileNotFoundError: `folder` is no cache.
        ValueError: it holds no images, fewer tokens of each than `tokens_per_image`, or a selection of their tokens
            where a setting needs whole images.
        DamagedShard: while iterating, where a shard is missing or is not what was written.
    """

    def __init__(
        self,
        folder: Path,
        plan: StreamPlan,
        parallel: DataPlace = ALONE,
        device: torch.device | str = "cpu",
        *,
        buffer_shards: int = BUFFER_SHARDS,
    ) -> None:
        self.index = CacheIndex.load(folder)
        self._wanted, self._device = plan, torch.device(device)
        self._plan = plan_of(plan, parallel)
        sizes = [record.images for record in self.index.shards]
        if sum(sizes) == 0:
            raise ValueError(f"{folder} holds no images yet: the command that wrote it goes on")
        wanted = plan.tokens_per_image
        if wanted is not None and wanted > self.index.tokens:
            raise ValueError(
                f"tokens_per_image is {wanted}, and {folder} holds {self.index.tokens} tokens of each image"
            )
        if self.index.options.tokens_per_image is not None and plan.needs_images is not None:
            setting, expected = plan.needs_images
            raise ValueError(
                f"{setting}, which needs whole images, and {folder} holds some tokens of each; expected {expected}"
            )
        if not self.index.complete:
            warnings.warn(
                f"{folder} is a part of a cache: {sum(sizes):,} of {self.index.images:,} images",
                UserWarning,
                stacklevel=2,
            )
        starts = np.cumsum([0, *sizes])
        groups = ReadGroups(starts, buffer_shards)
        order = train_order(int(starts[-1]), self.images_total, plan.seed, groups)
        self._reader = ChunkReader(folder, self.index, order, starts)
        self._uploads = Uploads(self._device)
        self._buffer_shards = buffer_shards

    @property
    def width(self) -> int:
        """D of the tokens."""
        return self.index.width

    @property
    def images_total(self) -> int:
        """Places in the order."""
        return self._plan.images_total

    @property
    def bad(self) -> list[BadImageRecord]:
        """Images that were left out when the cache was written."""
        return list(self.index.bad)

    def first(self, n: int) -> list[TokenBatch]:
        """See `TokenSource`; [N, D] where the cache has a selection of the tokens."""
        size = self._wanted.batch_size
        shares = self._shares(np.arange(n * size).reshape(n, size), 0)
        return [
            TokenBatch(self._shaped(share.tokens).float(), share.ids, len(share.ids), (number + 1) * size)
            for number, share in enumerate(shares)
        ]

    def batches(self, start: int) -> Iterator[TokenBatch]:
        """See `TokenSource`."""
        grid = self.index.options.tokens_per_image is None
        tokens = self.index.image_tokens if grid else None
        return token_batches(self._shares_from, self._plan, start, self._wanted, tokens=tokens)

    def _shaped(self, tokens: Tensor) -> Tensor:
        return tokens if self.index.options.tokens_per_image is None else tokens.flatten(0, 1)

    def _shares_from(self, step: int) -> Iterator[Share]:
        plan = self._plan
        places = np.arange(plan.begin(step), plan.images_total).reshape(-1, plan.batch_size)
        return self._shares(places[:, plan.slots.start : plan.slots.stop], plan.slots.start)

    def _shares(self, places: np.ndarray, first_slot: int) -> Iterator[Share]:
        """The share of every row of places [batches, b], the slots from `first_slot` on."""
        sent = self._sent(places)
        slots = [first_slot + i for i in range(places.shape[1])]
        with closing(sent if self._device.type == "cpu" else ahead(sent)) as items:
            for item in items:
                yield Share(item.arrived(), slots, item.ids)

    def _sent(self, places: np.ndarray) -> Generator[_Sent, None, None]:
        index, uploads = self.index, self._uploads
        with closing(ahead(self._reader.chunks(places.ravel()))) as chunks:
            chunk = next(chunks)
            for row in places:
                begin, at, end = int(row[0]), int(row[0]), int(row[-1]) + 1
                batch = empty_packed(len(row), index.tokens, index.width, index.options.store, uploads.pinned)
                ids: list[str] = []
                while at < end:
                    if at >= chunk.end:
                        chunk = next(chunks)
                    stop = min(end, chunk.end)
                    ids += chunk.copy(at, stop, batch[at - begin : stop - begin])
                    at = stop
                scale = None if batch.scale is None else uploads.begin(batch.scale)
                yield _Sent(uploads.begin(batch.tokens), scale, ids)


@dataclass(frozen=True, eq=False)
class _Sent:
    tokens: Upload
    scale: Upload | None
    ids: list[str]

    def arrived(self) -> Tensor:
        """[b, T, D] on the device: as they are stored they are a half or a quarter of what has to be copied."""
        return Packed(self.tokens.arrived(), None if self.scale is None else self.scale.arrived()).unpack()


def cache_fingerprint(index: CacheIndex, buffer_shards: int = BUFFER_SHARDS) -> str:
    """16 hex digits that a training which goes on has to find again: what was cached, and how it is read."""
    parts = (index.clip_fingerprint, index.dataset_fingerprint, index.options, buffer_shards)
    shards = [record.images for record in index.shards]
    return hashlib.sha256(repr((*parts, index.block, shards)).encode()).hexdigest()[:16]


def reading_bytes(index: CacheIndex, buffer_shards: int = BUFFER_SHARDS) -> int:
    """Memory that the shards take which are read from, and those that are read meanwhile."""
    return 2 * buffer_shards * index.shard_images * index.image_bytes

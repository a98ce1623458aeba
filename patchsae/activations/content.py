"""What a cache's shards hold: images through the tower, packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from patchsae.activations.decoded import decoded
from patchsae.activations.index import CacheIndex
from patchsae.activations.mixing import take_tokens
from patchsae.activations.options import CacheOptions
from patchsae.activations.packing import Packed, pack
from patchsae.data import BadImageRecord, Batch, ImageDataset, shuffled_order

if TYPE_CHECKING:
    from patchsae.models.clip import SplitCLIP


@dataclass(frozen=True, eq=False)
class Content:
    """The images of one shard."""

    number: int
    packed: Packed
    images: list[int]
    """Positions in the dataset."""
    ids: list[str]
    bad: tuple[BadImageRecord, ...]


def contents(
    clip: SplitCLIP, dataset: ImageDataset, index: CacheIndex, numbers: Sequence[int], workers: int
) -> Iterator[Content | None]:
    """What the shards `numbers`, ascending, hold; None after each batch of images, for progress and signals.

    Every shard is computed in the same batches, whatever came before it.
    """
    options = index.options
    order = shuffled_order(index.images, 0, options.seed, dataset.read_groups)
    rows = [
        (number, places)
        for number in numbers
        for places in np.split(index.places(number), range(options.batch_size, index.shard_images, options.batch_size))
        if len(places)
    ]
    found = decoded(dataset, clip.preprocess, [order[places] for _, places in rows], workers, options.on_bad_image)
    parts: list[tuple[Packed, Batch]] = []
    bad: list[BadImageRecord] = []
    with closing(found):
        for i, ((number, places), images) in enumerate(zip(rows, found, strict=True)):
            bad += images.bad
            if images.batch is not None:
                parts.append((_packed(clip, images.batch, places[images.slots].tolist(), options), images.batch))
            yield None
            if i + 1 == len(rows) or rows[i + 1][0] != number:
                yield _content(number, parts, tuple(bad), index)
                parts, bad = [], []


def _packed(clip: SplitCLIP, batch: Batch, places: list[int], options: CacheOptions) -> Packed:
    with torch.no_grad():
        tokens = clip.residual(batch.pixels)
        if options.tokens_per_image is not None:
            tokens = take_tokens(tokens, places, options.tokens_per_image, options.seed)
        good = tokens.isfinite().all(dim=(1, 2))
        if not good.all():
            id = batch.ids[int(good.logical_not().nonzero()[0])]
            raise ValueError(f"the residual stream of image {id!r} is not finite; expected numbers")
        packed = pack(tokens, options.store)
    return Packed(packed.tokens.cpu(), None if packed.scale is None else packed.scale.cpu())


def _content(
    number: int, parts: list[tuple[Packed, Batch]], bad: tuple[BadImageRecord, ...], index: CacheIndex
) -> Content:
    if not parts:
        packed = pack(torch.empty(0, index.tokens, index.width), index.options.store)
        return Content(number, packed, [], [], bad)
    scales = [part.scale for part, _ in parts if part.scale is not None]
    packed = Packed(torch.cat([part.tokens for part, _ in parts]), torch.cat(scales) if scales else None)
    images = [position for _, batch in parts for position in batch.index.tolist()]
    return Content(number, packed, images, [id for _, batch in parts for id in batch.ids], bad)

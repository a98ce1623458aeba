"""Where the tokens of a training come from: images through the tower of a CLIP, or a cache that was written of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from patchsae.activations import CachedTokens, CacheIndex, Stream, TokenBatch, TokenSource
from patchsae.activations.cached import cache_fingerprint, reading_bytes
from patchsae.data import ImageDataset
from patchsae.data.left_out import inherited
from patchsae.models.clip import SplitCLIP
from patchsae.models.taps import Taps
from patchsae.parallel.base import Parallel
from patchsae.training import sizes
from patchsae.training.config import TrainConfig


@dataclass(frozen=True, eq=False)
class Feed:
    """A source of tokens and what each of the autoencoders that learn from it is given."""

    source: TokenSource
    block: int
    taps: Taps | None = None
    """Where the source has the residual streams of several blocks side by side; else it has that of `block`."""

    def of_blocks(self, batch: TokenBatch) -> dict[int, TokenBatch]:
        """Block -> a batch of the source as those see it who read that block."""
        if self.taps is None:
            return {self.block: batch}
        streams = {block: self.taps.stream(batch.tokens, block) for block in self.taps.blocks}
        return {block: dataclasses.replace(batch, tokens=tokens) for block, tokens in streams.items()}


class Origin(Protocol):
    """Where tokens come from; what is read of it is a `Feed`."""

    device: torch.device
    """Where the tokens are wanted."""
    width: int
    """D of one block."""
    image_tokens: int
    """T, the tokens of an image."""
    images: int
    """Images of the dataset, those that cannot be read included."""
    block: int
    """The block whose output is read where none is named, 0-based."""

    def feed(self, config: TrainConfig, blocks: Sequence[int], parallel: Parallel) -> Feed:
        """The tokens of a training, of these blocks (ascending). ValueError for what the origin does not have."""

    def settings(self, config: TrainConfig, block: int) -> dict[str, Any]:
        """What a stage that is trained on it is begun with."""

    def metadata(self, config: TrainConfig, block: int) -> dict[str, Any]:
        """What an autoencoder that is trained on it says of itself."""

    def reading_bytes(self, config: TrainConfig, blocks: int) -> int:
        """Memory that reading takes, whatever learns."""


class FromImages:
    """Images through the tower of a CLIP.

    Args:
        opened_from: source, split and what else opens these images again; recorded for later stages.
        workers: processes that decode images; the result does not depend on it.
    """

    def __init__(
        self,
        clip: SplitCLIP,
        dataset: ImageDataset,
        opened_from: Mapping[str, str | int | float | None] | None = None,
        workers: int = 0,
    ) -> None:
        self.clip, self.dataset, self.workers = clip, dataset, workers
        self.opened_from = {key: value for key, value in (opened_from or {}).items() if value is not None}
        self.device, self.width, self.image_tokens = clip.device, clip.width, clip.image_tokens
        self.images, self.block = len(dataset), clip.layer

    def feed(self, config: TrainConfig, blocks: Sequence[int], parallel: Parallel) -> Feed:
        taps = None if list(blocks) == [self.clip.layer] else Taps(self.clip, blocks)
        source = Stream(taps or self.clip, self.dataset, config.stream_plan(), self.workers, parallel)
        return Feed(source, self.clip.layer, taps)

    def settings(self, config: TrainConfig, block: int) -> dict[str, Any]:
        made_from = {"clip_fingerprint": self.clip.fingerprint, **self.opened_from, "dataset": self.dataset.fingerprint}
        return {**self._model(block), **made_from, **asdict(config), "workers": self.workers}

    def metadata(self, config: TrainConfig, block: int) -> dict[str, Any]:
        named = {"dataset": self.dataset.name, **self.opened_from, **inherited(config.on_bad_image)}
        return {**self._model(block), **named}

    def reading_bytes(self, config: TrainConfig, blocks: int) -> int:
        size, shape = config.batch_size, (self.width, self.image_tokens)
        streams = 2 * 4 * size * self.image_tokens * self.width * blocks  # side by side, and one by one
        return sizes.tower_bytes(size, *shape) + streams + blocks * sizes.window_bytes(config, *shape)

    def _model(self, block: int) -> dict[str, Any]:
        return {**self.clip.metadata, "layer": block}


class FromCache:
    """The activations that `write_cache` left in a folder: no images and no tower are needed.

    Raises FileNotFoundError where `folder` is no cache; `DamagedShard` is raised while its tokens are read.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        self.index = index = CacheIndex.load(folder)
        self.width, self.image_tokens, self.images, self.block = index.width, index.tokens, index.images, index.block

    def feed(self, config: TrainConfig, blocks: Sequence[int], parallel: Parallel) -> Feed:
        if list(blocks) != [self.block]:
            raise ValueError(f"layer is {list(blocks)}; {self.folder} holds the output of block {self.block} alone")
        return Feed(CachedTokens(self.folder, config.stream_plan(), parallel, self.device), self.block)

    def settings(self, config: TrainConfig, block: int) -> dict[str, Any]:
        # what the cache did about bad images is what was done here
        made_from = {**self.index.model, "clip_fingerprint": self.index.clip_fingerprint, **self.index.origin}
        read = {"dataset": self.index.dataset_fingerprint, "cache": cache_fingerprint(self.index)}
        return {**asdict(config), **made_from, **read}

    def metadata(self, config: TrainConfig, block: int) -> dict[str, Any]:
        return {**self.index.model, "dataset": self.index.dataset, **self.index.origin}

    def reading_bytes(self, config: TrainConfig, blocks: int) -> int:
        batch = 4 * config.batch_size * self.image_tokens * self.width
        return batch + reading_bytes(self.index) + sizes.window_bytes(config, self.width, self.image_tokens)

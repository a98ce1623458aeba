"""Which image of one side is compared with which of the other, and how both stream by together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patchsae.data import Batch, ImageDataset, Sample


@dataclass(frozen=True, eq=False)
class PairBatch:
    """B pairs of images, the first of each for side A, the second for side B."""

    pixels: tuple[Tensor, Tensor]
    """float [B, 3, H, W] each; the same tensor where both sides look at the same images."""
    index: tuple[Tensor, Tensor]
    """int64 [B] each: positions in the side's dataset."""
    labels: Tensor
    """int64 [B], the same for both; -1 where there is none."""


class Pairing(Protocol):
    """A dataset to stream, and how a batch of it falls into pairs."""

    stream: ImageDataset
    images_per_pair: int

    def __len__(self) -> int: ...

    def pairs(self, batch: Batch) -> PairBatch: ...


class SameImages:
    """Every image with itself: two models on one dataset. An image is decoded once."""

    images_per_pair = 1

    def __init__(self, dataset: ImageDataset) -> None:
        self.stream = dataset

    def __len__(self) -> int:
        return len(self.stream)

    def pairs(self, batch: Batch) -> PairBatch:
        """All of the batch."""
        return PairBatch((batch.pixels, batch.pixels), (batch.index, batch.index), batch.labels)


class ByClass:
    """The j-th image of a class with the j-th image of the same class, as far as both datasets reach.

    Raises ValueError when the datasets have no labels, or not the same classes, or no class in common.
    """

    images_per_pair = 2

    def __init__(self, first: ImageDataset, second: ImageDataset) -> None:
        if first.classnames is None or first.classnames != second.classnames:
            raise ValueError(
                f"datasets {first.name!r} and {second.name!r} are compared class by class; "
                "expected labels of the same classes in the same order in both"
            )
        self.positions = np.concatenate([_paired(first.labels, second.labels, c) for c in range(len(first.classnames))])
        if len(self.positions) == 0:
            raise ValueError(f"datasets {first.name!r} and {second.name!r} have no class of which both hold an image")
        self.stream: ImageDataset = _Interleaved(first, second, self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def pairs(self, batch: Batch) -> PairBatch:
        """The pairs of which both images could be decoded."""
        pair, side = batch.index // 2, batch.index % 2
        first, second = (batch.index[side == s] // 2 for s in (0, 1))
        whole = first[torch.isin(first, second)]
        rows = [(torch.isin(pair, whole) & (side == s)).nonzero().squeeze(1) for s in (0, 1)]
        positions = torch.from_numpy(self.positions)[whole]
        return PairBatch(
            (batch.pixels[rows[0]], batch.pixels[rows[1]]), (positions[:, 0], positions[:, 1]), batch.labels[rows[0]]
        )


class _Interleaved(ImageDataset):
    """first[p0], second[p0'], first[p1], second[p1'], ...: the images of a pair next to each other."""

    def __init__(self, first: ImageDataset, second: ImageDataset, positions: np.ndarray) -> None:
        labels = np.repeat(first.labels[positions[:, 0]], 2)
        super().__init__(f"{first.name} | {second.name}", labels, first.classnames)
        self.sides = (first, second)
        self.positions = positions

    def ids(self, i: int) -> str:
        return self.sides[i % 2].ids(int(self.positions[i // 2, i % 2]))

    def sample(self, i: int) -> Sample:
        return self.sides[i % 2].sample(int(self.positions[i // 2, i % 2]))


def _paired(first: np.ndarray, second: np.ndarray, label: int) -> np.ndarray:
    """int64 [m, 2]: positions of the images of one class in both datasets."""
    mine, theirs = np.flatnonzero(first == label), np.flatnonzero(second == label)
    both = min(len(mine), len(theirs))
    return np.stack([mine[:both], theirs[:both]], axis=1)

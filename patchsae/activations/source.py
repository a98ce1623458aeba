"""What training reads: batches of tokens from a place in an order of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from patchsae.data import BadImageRecord


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The tokens of one step that this process trains on."""

    tokens: Tensor
    """float32 [B, T, D], CLS first, where whole images come unmixed; else [N, D], tokens that are all alike."""
    ids: list[str]
    """The images that the tokens are from."""
    images: int
    """How many images this batch counts for: summed over batches and processes, each image counts once."""
    next_start: int
    """The place in the order after this batch: `batches(next_start)` goes on from here."""


class TokenSource(Protocol):
    """An order of images, cut into batches for the start and then batches to train on.

    Of every batch each data-parallel process has its own part, and the parts in the order of the processes are the
    batch that a single process has. A process may have an empty part of a batch; a batch that is empty everywhere is
    given to all processes where there are several, so that they stay in step, and left out where there is one.
    """

    @property
    def width(self) -> int:
        """D of the tokens."""

    @property
    def images_total(self) -> int:
        """Places in the order: the images for the start and those of every step."""

    @property
    def bad(self) -> list[BadImageRecord]:
        """Images that were left out of the batches given so far (a cache: when it was written)."""

    def first(self, n: int) -> list[TokenBatch]:
        """The first `n` batches of the order, whole and unmixed on every process: for the start, not for training."""

    def batches(self, start: int) -> Iterator[TokenBatch]:
        """The batches from place `start`, the end of the first batches or a `next_start`, to the end of the order."""

"""Rows of images, decoded in worker processes: one answer for every row, also where no image of it is good."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patchsae.data import BadImageRecord, Batch, BatchIterator, ImageDataset, batches

if TYPE_CHECKING:
    from patchsae.data.loader import OnBadImage, Preprocess


@dataclass(frozen=True, eq=False)
class Decoded:
    """The good images of a row."""

    batch: Batch | None
    """None where there is none."""
    slots: list[int]
    """Their positions in the row, ascending."""
    bad: list[BadImageRecord]
    """Images found bad since the answer before; an image that comes twice may be named twice."""


def decoded(
    dataset: ImageDataset,
    preprocess: Preprocess,
    rows: Sequence[np.ndarray],
    workers: int,
    on_bad_image: OnBadImage,
) -> Generator[Decoded, None, None]:
    """The images of each row, int [b] dataset positions, all of one length but the last; arguments as for `batches`.

    The workers start here and not with the first row, which may be asked for in another thread.
    """
    if not rows:
        return _aligned(batches(dataset, preprocess, 1, np.empty(0, np.int64)), rows, 1)
    size = len(rows[0])
    loader = batches(dataset, preprocess, size, np.concatenate(rows), workers, on_bad_image)
    return _aligned(loader, rows, size)


def _aligned(loader: BatchIterator, rows: Sequence[np.ndarray], size: int) -> Generator[Decoded, None, None]:
    """The loader leaves out a batch without a good image: put it back."""
    given = known = 0
    for batch in loader:
        bad, known = loader.bad[known:], len(loader.bad)
        number = -(-batch.next_start // size) - 1
        for _ in range(given, number):
            yield Decoded(None, [], bad)
        yield Decoded(batch, _positions(batch.index.tolist(), rows[number].tolist()), bad)
        given = number + 1
    for _ in range(given, len(rows)):
        yield Decoded(None, [], loader.bad[known:])


def _positions(good: Sequence[int], row: Sequence[int]) -> list[int]:
    """Where the items of `good`, a subsequence of `row`, stand in it."""
    remaining = iter(enumerate(row))
    return [next(slot for slot, position in remaining if position == wanted) for wanted in good]

"""Batches of preprocessed images, decoded in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from patchsae.data.base import BadImage, BadImageRecord, DataError, ImageDataset
from patchsae.data.workers import in_workers

OnBadImage = Literal["stop", "skip"]
Preprocess = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """Decoded images that stand together in an order; shorter by those that could not be decoded."""

    pixels: torch.Tensor
    """float32 [B, 3, H, W]."""
    labels: torch.Tensor
    """int64 [B], -1 where there is none."""
    index: torch.Tensor
    """int64 [B], positions in the dataset."""
    ids: list[str]
    next_start: int
    """The position in the order after this batch: `batches(..., start=next_start)` goes on from here."""


def batches(
    dataset: ImageDataset,
    preprocess: Preprocess,
    batch_size: int,
    order: np.ndarray | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "stop",
    start: int = 0,
) -> BatchIterator:
    """The images order[start:] in batches of `batch_size`, the last one shorter.

    Batches are cut by place in the order, so a bad image makes its own batch shorter and touches no other; a batch
    without any good image is left out. The result does not depend on `workers`.

    Args:
        dataset: decoded on demand; must be picklable where `workers` > 0.
        preprocess: PIL RGB to float tensor [3, H, W], the same H, W for all; picklable where `workers` > 0.
        order: int [m] dataset positions, repeats allowed; default 0 .. n - 1.
        workers: processes that decode; 0 decodes in this one.
        on_bad_image: "stop" raises BadImage; "skip" leaves the image out and adds it to `.bad`.
        start: place in the order, 0 .. m.

    Raises:
        DataError: an argument out of its range; a preprocess that gives something else (while iterating).
        BadImage: while iterating, under "stop".
    """
    order = np.arange(len(dataset)) if order is None else np.asarray(order)
    _check(order, len(dataset), batch_size, workers, on_bad_image, start)
    return BatchIterator(_Decoding(dataset, preprocess, batch_size, order, on_bad_image, start), workers)


class BatchIterator(Iterator[Batch]):
    """Iterates once over batches; made by `batches`.

    Attributes:
        bad: the images left out so far, once each, in the order they came up.
    """

    def __init__(self, decoding: _Decoding, workers: int) -> None:
        self.bad: list[BadImageRecord] = []
        self._seen: set[int] = set()
        self._stop = decoding.on_bad_image == "stop"
        self._count = len(decoding)
        self._results = in_workers(decoding, self._count, workers)

    def __len__(self) -> int:
        """How many batches the order is cut into."""
        return self._count

    def __next__(self) -> Batch:
        while True:
            batch, bad = next(self._results)
            if bad and self._stop:
                raise BadImage(bad[0].id, bad[0].reason)
            self._note(bad)
            if batch is not None:
                return batch

    def _note(self, bad: list[BadImageRecord]) -> None:
        new = [record for record in bad if record.index not in self._seen]
        self._seen.update(record.index for record in new)
        self.bad.extend({record.index: record for record in new}.values())


@dataclass(frozen=True, eq=False)
class _Decoding:
    """Batch number -> (the batch or None, its bad images): what a worker does."""

    dataset: ImageDataset
    preprocess: Preprocess
    batch_size: int
    order: np.ndarray
    on_bad_image: str
    start: int

    def __len__(self) -> int:
        return -(-(len(self.order) - self.start) // self.batch_size)

    def __call__(self, number: int) -> tuple[Batch | None, list[BadImageRecord]]:
        first = self.start + number * self.batch_size
        places = self.order[first : first + self.batch_size]
        good, bad = [], []
        for i in places.tolist():
            try:
                sample = self.dataset.sample(i)
            except BadImage as error:
                bad.append(BadImageRecord(i, error.id, error.reason))
                if self.on_bad_image == "stop":
                    break
            else:
                good.append((i, sample.label, sample.id, self.preprocess(sample.image)))
        if not good:
            return None, bad
        index, labels, ids, pixels = zip(*good, strict=True)
        stacked = _stack(list(pixels), ids)
        return Batch(stacked, torch.tensor(labels), torch.tensor(index), list(ids), first + len(places)), bad


def _stack(pixels: list[torch.Tensor], ids: tuple[str, ...]) -> torch.Tensor:
    for tensor, id in zip(pixels, ids, strict=True):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.ndim != 3:
            is_tensor = isinstance(tensor, torch.Tensor)
            came = f"{tensor.dtype} {list(tensor.shape)}" if is_tensor else f"a {type(tensor).__name__}"
            raise DataError(f"preprocess gave {came} for image {id!r}; expected a float tensor [3, H, W]")
        if tensor.shape != pixels[0].shape or len(tensor) != 3:
            expected = [3, *pixels[0].shape[1:]]
            raise DataError(
                f"preprocess gave shape {list(tensor.shape)} for image {id!r}; expected {expected}, one size for all"
            )
    return torch.stack(pixels).to(torch.float32)


def _check(order: np.ndarray, n: int, batch_size: int, workers: int, on_bad_image: str, start: int) -> None:
    if order.ndim != 1 or not (np.issubdtype(order.dtype, np.integer) or len(order) == 0):
        raise DataError(f"order is {order.dtype} {list(order.shape)}; expected integers [m]")
    if len(order) and (order.min() < 0 or order.max() >= n):
        raise DataError(f"order holds {order.min()} .. {order.max()}; expected positions within 0 .. {n - 1}")
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; expected at least 1")
    if workers < 0:
        raise DataError(f"workers is {workers}; expected 0 or more processes")
    if on_bad_image not in get_args(OnBadImage):
        raise DataError(f"on_bad_image is {on_bad_image!r}; expected 'stop' or 'skip'")
    if not 0 <= start <= len(order):
        raise DataError(f"start is {start}; expected a place in the order, 0 .. {len(order)}")

"""Tokens straight from images: decoded in worker processes, sent to the device ahead of time, through the tower."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from patchsae.activations.ahead import ahead
from patchsae.activations.decoded import Decoded, decoded
from patchsae.activations.mixing import Share, token_batches
from patchsae.activations.plan import ALONE, DataPlace, StreamPlan, plan_of
from patchsae.activations.source import TokenBatch
from patchsae.activations.transfer import Upload, Uploads
from patchsae.data import BadImageRecord, ImageDataset, train_order

if TYPE_CHECKING:
    from patchsae.models.clip import SplitCLIP
    from patchsae.models.taps import Taps


class Stream:
    """The residual stream of images, as a `TokenSource`.

    The order is that of `train_order` with the plan's seed. With `shuffle` 0 and all tokens of an image a
    batch is `clip.residual(pixels).float()` of its images, as in the released code.

    Args:
        plan: which images, in which order, and how many tokens of each.
        workers: processes that decode images; 0 decodes in this one. The result does not depend on it.
        parallel: which data-parallel process this is; it decodes its own images alone.

    Raises:
        ValueError: fewer images in a batch than data-parallel processes, or more tokens than an image has.
        BadImage: while iterating, where an image cannot be decoded and `on_bad_image` is "stop".
    """

    def __init__(
        self,
        clip: SplitCLIP | Taps,
        dataset: ImageDataset,
        plan: StreamPlan,
        workers: int = 0,
        parallel: DataPlace = ALONE,
    ) -> None:
        self._clip, self._dataset, self._wanted, self._workers = clip, dataset, plan, workers
        self._plan = plan_of(plan, parallel)
        if (plan.tokens_per_image or 0) > clip.image_tokens:
            raise ValueError(
                f"tokens_per_image is {plan.tokens_per_image}; expected at most {clip.image_tokens}, the tokens of "
                "an image"
            )
        self._order = train_order(len(dataset), self.images_total, plan.seed, dataset.read_groups)
        self._uploads = Uploads(clip.device)
        self._bad: dict[int, BadImageRecord] = {}

    @property
    def width(self) -> int:
        """D of the tokens."""
        return self._clip.width

    @property
    def images_total(self) -> int:
        """Places in the order."""
        return self._plan.images_total

    @property
    def bad(self) -> list[BadImageRecord]:
        """Images left out of the batches given so far, once each; those of this process."""
        return list(self._bad.values())

    def first(self, n: int) -> list[TokenBatch]:
        """See `TokenSource`. Raises ValueError where none of these images can be decoded."""
        size = self._wanted.batch_size
        shares = self._shares(self._order[: n * size].reshape(n, size), 0)
        found = [
            TokenBatch(share.tokens.float(), share.ids, len(share.ids), (number + 1) * size)
            for number, share in enumerate(shares)
            if share.ids
        ]
        if not found:
            which = "the first batch" if n == 1 else f"the first {n} batches"
            raise ValueError(f"dataset {self._dataset.name!r}: none of the images of {which} can be decoded")
        return found

    def batches(self, start: int) -> Iterator[TokenBatch]:
        """See `TokenSource`."""
        return token_batches(self._shares_from, self._plan, start, self._wanted, tokens=self._clip.image_tokens)

    def _shares_from(self, step: int) -> Iterator[Share]:
        slots = self._plan.slots
        rest = self._order[self._plan.begin(step) :].reshape(-1, self._plan.batch_size)
        return self._shares(rest[:, slots.start : slots.stop], slots.start)

    def _shares(self, rows: np.ndarray, first_slot: int) -> Iterator[Share]:
        """The share of every row of dataset positions [batches, b], the slots from `first_slot` on."""
        on_bad_image = self._wanted.on_bad_image
        found = decoded(self._dataset, self._clip.preprocess, list(rows), self._workers, on_bad_image)
        sent = self._sent(found)
        # In a thread where something is waited for there: data workers, or copies to a device. Decoding itself would
        # only take turns with the step.
        beside = self._workers > 0 or self._clip.device.type != "cpu"
        with closing(ahead(sent) if beside else sent) as items:
            for item in items:
                self._bad = {record.index: record for record in item.images.bad} | self._bad
                yield Share(self._residual(item), [first_slot + i for i in item.images.slots], item.ids)

    def _sent(self, found: Iterator[Decoded]) -> Generator[_Sent, None, None]:
        for images in found:
            batch = images.batch
            if batch is None:
                yield _Sent(images, None, [])
            else:
                yield _Sent(images, self._uploads.begin(batch.pixels), batch.ids)

    def _residual(self, item: _Sent) -> torch.Tensor:
        clip = self._clip
        if item.pixels is None:
            return torch.empty(0, clip.image_tokens, clip.width, dtype=clip.dtype, device=clip.device)
        with torch.no_grad():
            return clip.residual(item.pixels.arrived())


@dataclass(frozen=True, eq=False)
class _Sent:
    images: Decoded
    pixels: Upload | None
    """[b, 3, H, W]; None where b is 0."""
    ids: list[str]

"""From the few images to scores: batches step by step, and what stays frozen computed once.

The text side of VPT and LoRA and the image side of CoOp and the linear probe do not change while training. The first is
kept by the adapter itself. The second can be kept only where every epoch shows the same pictures (no augmentation):
then each image passes the tower once, and a step is a product with its embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patchsae import progress
from patchsae.adapt.options import AdaptOptions, Precision
from patchsae.adapt.recipes import Recipe
from patchsae.adapt.views import Views, epoch_order
from patchsae.adapters import AdaptedCLIP
from patchsae.data import BadImageRecord, BatchIterator, ImageDataset, batches

IMAGE_SIDE_FROZEN = ("coop", "linear")


@dataclass(frozen=True, eq=False)
class StepInput:
    """The images of one optimiser step."""

    step: int
    """From 0."""
    inputs: Tensor
    """What `Source.logits` takes: pixels float32 [B, 3, H, W], or embeddings [B, E]."""
    labels: Tensor
    """int64 [B]."""
    ids: list[str]


class Stream(Protocol):
    """Iterates over steps; `bad` holds the images left out so far, by their places in `Views`."""

    @property
    def bad(self) -> list[BadImageRecord]: ...

    def __iter__(self) -> Iterator[StepInput]: ...


class Source:
    """The steps of a training: pixels through the whole model.

    Attributes:
        steps: in all.
        steps_per_epoch: batches of the few images; those that fill no batch are left out of their epoch.
        batch_size: images in a step: all of them where they are fewer than the recipe's.
    """

    def __init__(self, adapted: AdaptedCLIP, few: ImageDataset, recipe: Recipe, options: AdaptOptions) -> None:
        self.adapted, self.options, self.device = adapted, options, adapted.device
        self.few = len(few)
        self.batch_size = min(recipe.batch_size, len(few))
        self.steps_per_epoch = len(few) // max(1, self.batch_size)
        self.steps = recipe.steps or (recipe.epochs or 0) * self.steps_per_epoch
        epochs = -(-self.steps // max(1, self.steps_per_epoch))
        order = [epoch_order(len(few), epoch, recipe.batch_size, options.seed) for epoch in range(max(1, epochs))]
        self.order = np.concatenate(order)[: self.steps * self.batch_size]
        self.views = Views(few, epochs, adapted.image_size, options.seed, recipe.augment)

    def stream(self, start: int) -> Stream:
        """The steps from ``start`` on."""
        options, place = self.options, start * self.batch_size
        return _Pixels(
            batches(
                self.views,
                self.adapted.preprocess,
                self.batch_size,
                self.order,
                options.workers,
                options.on_bad_image or "stop",
                place,
            ),
            self.batch_size,
        )

    def logits(self, inputs: Tensor) -> Tensor:
        """Scores float32 [B, C] of a step, with gradients."""
        with arithmetic(self.options.precision, self.device):
            return self.adapted.logits(inputs)

    def among_the_few(self, record: BadImageRecord) -> BadImageRecord:
        """A record of a view as one of the image that it shows."""
        return replace(record, index=record.index % self.few)


def open_source(adapted: AdaptedCLIP, few: ImageDataset, recipe: Recipe, options: AdaptOptions, label: str) -> Source:
    """The source that computes least with the same result. ``label`` is what the progress line says."""
    if recipe.augment == "none" and adapted.kind in IMAGE_SIDE_FROZEN:
        return _EmbeddedSource(adapted, few, recipe, options, label)
    return Source(adapted, few, recipe, options)


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What the towers compute in: "amp" is autocast to bfloat16, which needs no scaling of the loss."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "amp" else nullcontext()


class _Pixels:
    """Batches of views as steps."""

    def __init__(self, batches: BatchIterator, batch_size: int) -> None:
        self._batches, self._batch_size = batches, batch_size

    @property
    def bad(self) -> list[BadImageRecord]:
        return self._batches.bad

    def __iter__(self) -> Iterator[StepInput]:
        for batch in self._batches:
            yield StepInput(batch.next_start // self._batch_size - 1, batch.pixels, batch.labels, batch.ids)


class _EmbeddedSource(Source):
    """Embeddings of the few images, computed when it is made, in place of their pixels."""

    def __init__(
        self, adapted: AdaptedCLIP, few: ImageDataset, recipe: Recipe, options: AdaptOptions, label: str
    ) -> None:
        super().__init__(adapted, few, recipe, options)
        self.labels = torch.from_numpy(few.labels)
        self.ids = [few.ids(i) for i in range(len(few))]
        self.readable = np.zeros(len(few), bool)
        self.embeddings = torch.zeros(len(few), adapted.embed_dim, device=adapted.device)
        stream = batches(
            few,
            adapted.preprocess,
            options.test_batch_size,
            workers=options.workers,
            on_bad_image=options.on_bad_image or "stop",
        )
        with torch.no_grad(), progress.track(len(few), f"{label}: embedding") as bar:
            for batch in stream:
                with arithmetic(options.precision, adapted.device):
                    embedded = adapted.embed(adapted.residual(batch.pixels))
                self.embeddings[batch.index.to(adapted.device)] = embedded.float()
                self.readable[batch.index.numpy()] = True
                bar.advance(len(batch.ids))
        self.bad = stream.bad

    def stream(self, start: int) -> Stream:
        return _Embedded(self, start)

    def logits(self, inputs: Tensor) -> Tensor:
        with arithmetic(self.options.precision, self.device):
            classifier = self.adapted.text_classifier()
        return self.adapted.logit_scale * inputs @ classifier.float().T


class _Embedded:
    """Rows of the embeddings as steps."""

    def __init__(self, source: _EmbeddedSource, start: int) -> None:
        self._source, self._start = source, start
        self.bad = source.bad

    def __iter__(self) -> Iterator[StepInput]:
        source, size = self._source, self._source.batch_size
        for step in range(self._start, source.steps):
            places = source.order[step * size : (step + 1) * size] % source.few
            places = places[source.readable[places]]
            if len(places):
                chosen = torch.from_numpy(places)
                inputs = source.embeddings[chosen.to(source.device)]
                yield StepInput(step, inputs, source.labels[chosen], [source.ids[i] for i in places.tolist()])

"""Accuracy of an adapter, and of the CLIP that it adapts, on one part of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.adapt.forward import IMAGE_SIDE_FROZEN, arithmetic
from patchsae.adapt.options import AdaptOptions
from patchsae.adapt.task import Part
from patchsae.adapters import AdaptedCLIP
from patchsae.data import BadImageRecord, Batch
from patchsae.disk.runs import Stage
from patchsae.experiments.options import StreamOptions
from patchsae.experiments.stream.fold import discard_state, fold
from patchsae.models.prompts import warn_of_twins


@dataclass(frozen=True)
class PartResult:
    """How many images of each class were seen and classified correctly. Lists of C integers, by label."""

    name: str
    classnames: list[str]
    images: list[int]
    correct: list[int]
    clip_correct: list[int]
    """By the CLIP without the adapter, with its templates."""
    bad: list[dict[str, int | str]]
    """Images that could not be read."""

    @property
    def accuracy(self) -> float:
        """Share of all images, not the mean over classes: as the papers count."""
        return sum(self.correct) / max(1, sum(self.images))

    @property
    def clip_accuracy(self) -> float:
        """The same of the CLIP without the adapter."""
        return sum(self.clip_correct) / max(1, sum(self.images))


def evaluate(
    adapted: AdaptedCLIP, part: Part, templates: Sequence[str], options: AdaptOptions, stage: Stage
) -> PartResult:
    """Stream the whole part once through both models; one that was stopped goes on.

    Args:
        adapted: with the classes that it was trained on.
        templates: the prompts of the frozen CLIP, and of an adapter without text prompts.
    """
    names = part.dataset.classnames or []
    counts = _Counts(len(names))
    scores = _Scores(adapted, part, templates, options)

    def update(batch: Batch) -> None:
        counts.update(batch.labels, *scores.predict(batch.pixels))

    streaming = StreamOptions(options.test_batch_size, options.workers, options.on_bad_image, options.save_minutes)
    label = f"{stage.name}: {part.name}"
    folded = fold(part.dataset, adapted.preprocess, update, {"counts": counts}, streaming, label=label, stage=stage)
    discard_state(stage)
    images, correct, clip_correct = counts.table.tolist()
    return PartResult(part.name, list(names), images, correct, clip_correct, [_plain(record) for record in folded.bad])


class _Scores:
    """Predictions of the adapter and of its CLIP."""

    def __init__(self, adapted: AdaptedCLIP, part: Part, templates: Sequence[str], options: AdaptOptions) -> None:
        names = part.dataset.classnames or []
        self.clip, self.precision = adapted.clip, options.precision
        self._same_tower = adapted.kind in IMAGE_SIDE_FROZEN
        self.adapted = adapted.for_classes(names)
        with torch.no_grad(), arithmetic(self.precision, adapted.device):
            self.clip_classifier = adapted.clip.text_classifier(names, templates).float()
            self.classifier = self.adapted.text_classifier(templates=templates).float()
        for weights in (self.clip_classifier, self.classifier):
            warn_of_twins(weights, names)

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(the adapter's, the CLIP's) classes, int64 [B] each."""
        with arithmetic(self.precision, self.clip.device):
            theirs = self.clip.embed(self.clip.residual(pixels))
            ours = theirs if self._same_tower else self.adapted.embed(self.adapted.residual(pixels))
        scores = ours.float() @ self.classifier.T, theirs.float() @ self.clip_classifier.T
        return scores[0].argmax(dim=1), scores[1].argmax(dim=1)


class _Counts:
    """Images, correct ones, and correct ones of the CLIP, by class: an accumulator of the fold."""

    def __init__(self, classes: int) -> None:
        self.table = torch.zeros(3, classes, dtype=torch.int64)

    def update(self, labels: Tensor, adapted: Tensor, clip: Tensor) -> None:
        one = torch.ones_like(labels)
        for row, counted in zip(self.table, (one, adapted.cpu() == labels, clip.cpu() == labels), strict=True):
            row.index_add_(0, labels, counted.to(torch.int64))

    def merge(self, other: _Counts) -> None:
        self.table += other.table

    def state_dict(self) -> dict[str, Tensor]:
        return {"table": self.table}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.copy_(state["table"])


def _plain(record: BadImageRecord) -> dict[str, int | str]:
    return {"index": record.index, "id": record.id, "reason": record.reason}

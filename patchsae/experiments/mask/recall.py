"""Zero-shot classification counted per class, for many maskings of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patchsae.experiments.mask.embeddings import Masking
from patchsae.experiments.zero_shot import ZeroShot


class RecallCounts:
    """Images per class and, for every masking, how many of them were classified correctly.

    Args:
        maskings: the V maskings, in the order of the tables.
        classifier: of C classes.
    """

    def __init__(self, maskings: Sequence[Masking], classifier: ZeroShot) -> None:
        self.maskings = tuple(maskings)
        self.classifier = classifier
        self.correct = torch.zeros(len(self.maskings), classifier.classes, dtype=torch.int64)
        self.images = torch.zeros(classifier.classes, dtype=torch.int64)

    def update(self, embeddings: Mapping[Masking, Tensor], labels: Tensor) -> None:
        """Take in a batch: masking -> float [B, E] for every masking, and labels int64 [B] in 0 .. C - 1."""
        labels = labels.cpu()
        classes = len(self.images)
        self.images += torch.bincount(labels, minlength=classes)
        for row, masking in enumerate(self.maskings):
            right = self.classifier.correct(embeddings[masking], labels)
            self.correct[row] += torch.bincount(labels[right], minlength=classes)

    def merge(self, other: RecallCounts) -> None:
        """Add what another count saw; it must be of the same maskings and classes."""
        if other.maskings != self.maskings or len(other.images) != len(self.images):
            raise ValueError(
                f"other counts {len(other.maskings)} maskings of {len(other.images)} classes; "
                f"expected the same {len(self.maskings)} maskings of {len(self.images)} classes"
            )
        self.correct += other.correct
        self.images += other.images

    def state_dict(self) -> dict[str, Tensor]:
        return {"correct": self.correct, "images": self.images}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.correct, self.images = state["correct"], state["images"]

    def finalize(self) -> tuple[Tensor, Tensor]:
        """correct int64 [V, C], images int64 [C]."""
        return self.correct, self.images

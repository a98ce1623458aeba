"""Zero-shot classification counted per class, for many variants of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patchsae.experiments.mask.embeddings import Variant
from patchsae.experiments.zero_shot import ZeroShot


class RecallCounts:
    """Images per class and, for every variant, how many of them were classified correctly.

    Args:
        variants: the V variants, in the order of the tables.
        classifier: of C classes.
    """

    def __init__(self, variants: Sequence[Variant], classifier: ZeroShot) -> None:
        self.variants = tuple(variants)
        self.classifier = classifier
        self.correct = torch.zeros(len(self.variants), classifier.classes, dtype=torch.int64)
        self.images = torch.zeros(classifier.classes, dtype=torch.int64)

    def update(self, embeddings: Mapping[Variant, Tensor], labels: Tensor) -> None:
        """Take in a batch: variant -> float [B, E] for every variant, and labels int64 [B] in 0 .. C - 1."""
        labels = labels.cpu()
        classes = len(self.images)
        self.images += torch.bincount(labels, minlength=classes)
        for row, variant in enumerate(self.variants):
            right = self.classifier.correct(embeddings[variant], labels)
            self.correct[row] += torch.bincount(labels[right], minlength=classes)

    def merge(self, other: RecallCounts) -> None:
        """Add what another count saw; it must be of the same variants and classes."""
        if other.variants != self.variants or len(other.images) != len(self.images):
            raise ValueError(
                f"other counts {len(other.variants)} variants of {len(other.images)} classes; "
                f"expected the same {len(self.variants)} variants of {len(self.images)} classes"
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

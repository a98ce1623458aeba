"""Embeddings against a text classifier: which images are classified correctly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.groups import group_of
from patchsae.experiments.options import PromptOptions
from patchsae.models.prompts import warn_of_twins


class ZeroShot:
    """Scores embeddings against class weights; an image goes to the class with the largest score.

    Args:
        weights: float [C, E].
        groups: int64 [C], group of every class: an image competes only among the classes of its own label's group.
            None is one group.
    """

    def __init__(self, weights: Tensor, groups: Tensor | None = None) -> None:
        self.weights = weights
        self.groups = torch.zeros(len(weights), dtype=torch.int64) if groups is None else groups

    @property
    def classes(self) -> int:
        """C."""
        return len(self.weights)

    def correct(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Which of B images are classified as their label, bool [B] on the CPU.

        embedding: float [B, E]; labels: int64 [B], False where one is -1.
        """
        labels = labels.cpu()
        scores = embedding @ self.weights.to(embedding).T
        strangers = self.groups[labels.clamp_min(0), None] != self.groups[None]  # [B, C]
        return scores.masked_fill(strangers.to(scores.device), -torch.inf).argmax(dim=1).cpu() == labels


@torch.no_grad()
def zero_shot(
    clip: AnyCLIP, classnames: Sequence[str], templates: Sequence[str], options: PromptOptions, groups: str = "none"
) -> ZeroShot:
    """The classifier of a model for these classes. templates: resolved; a model with learned prompts ignores them.

    Warns of classes that it cannot tell apart (`prompts.warn_of_twins`).
    """
    weights = clip.text_classifier(classnames, templates, renormalise=options.renormalise)
    warn_of_twins(weights, classnames)
    return ZeroShot(weights.detach(), group_of(groups, len(classnames)))

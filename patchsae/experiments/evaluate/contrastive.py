"""CLIP's contrastive loss of a batch of images with captions that name their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from patchsae.experiments.mask.embeddings import Masking


def contrastive_loss(images: Tensor, texts: Tensor, scale: float) -> Tensor:
    """Mean of both cross-entropies of CLIP (Radford et al. 2021, figure 3) as the released PatchSAE code takes them.

    Image i and text i belong together and every other text of the batch counts as wrong, also one with the same words.

    images, texts: unit-norm [B, E]. scale: factor on their cosines. Returns float64, 0-d.
    """
    logits = scale * images.double() @ texts.double().T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def lowest_contrastive_loss(labels: Tensor) -> float:
    """What no embedding of images can get below when images of a class share a caption.

    Mean over the images of ln(images of the batch with the same label): softmax splits evenly between equal texts, and
    Jensen's inequality gives the same bound for the texts. labels: int64 [B].
    """
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    return float(counts[inverse].double().log().mean())


@dataclass(frozen=True)
class Contrastive:
    """Contrastive losses, means over batches of the same size."""

    losses: Mapping[Masking, float]
    lowest: float
    """The mean of :func:`lowest_contrastive_loss`."""
    batches: int
    """Batches that the means are over."""


class ContrastiveSums:
    """Sums of the contrastive losses of some maskings of the same images.

    Batches of another size (the last one; one with an unreadable image) are left out: the loss grows with the logarithm
    of the size.

    Args:
        maskings: V ways of embedding the images.
        captions: unit-norm [C, E], the text of every class.
        scale: CLIP's factor on the cosines.
        batch_size: images of a batch that counts.
    """

    def __init__(self, maskings: Sequence[Masking], captions: Tensor, scale: float, batch_size: int) -> None:
        self.maskings = tuple(maskings)
        self.captions, self.scale, self.batch_size = captions, scale, batch_size
        self.batches = 0
        self.sums = torch.zeros(len(self.maskings) + 1, dtype=torch.float64)

    def update(self, embeddings: Mapping[Masking, Tensor], labels: Tensor) -> None:
        """Take in a batch: masking -> unit-norm [B, E] for every masking, labels int64 [B] in 0 .. C - 1."""
        if len(labels) != self.batch_size:
            return
        texts = self.captions[labels.to(self.captions.device)]
        losses = [float(contrastive_loss(embeddings[m], texts, self.scale)) for m in self.maskings]
        self.sums += torch.tensor([*losses, lowest_contrastive_loss(labels)], dtype=torch.float64)
        self.batches += 1

    def merge(self, other: ContrastiveSums) -> None:
        self.sums = self.sums + other.sums
        self.batches += other.batches

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "batches": torch.tensor(self.batches)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums, self.batches = state["sums"], int(state["batches"])

    def finalize(self) -> Contrastive | None:
        """The means; None where no batch was whole."""
        if self.batches == 0:
            return None
        *losses, lowest = (self.sums / self.batches).tolist()
        return Contrastive(dict(zip(self.maskings, losses, strict=True)), lowest, self.batches)

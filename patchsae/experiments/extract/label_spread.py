"""How far a latent's reference images spread over the labels (Lim et al., arXiv 2412.05276)."""

from __future__ import annotations

import torch
from torch import Tensor

MINIMUM_ENTRIES = 10


def label_entropy(values: Tensor, labels: Tensor, minimum: int = MINIMUM_ENTRIES) -> tuple[Tensor, Tensor]:
    """Entropy of the label shares of every latent's reference images.

    p_c is the share of the activations (not of the images) that carry label c; the entropy is -sum_c p_c ln p_c in
    nats.

    Args:
        values: float [S, n], activations of the reference images, 0 where there is none.
        labels: int64 [S, n], their labels, -1 where there is no image or no label.
        minimum: fewest labelled entries for which the entropy is defined.

    Returns:
        entropy: float64 [S], 0 where undefined; defined: bool [S].
    """
    weights = torch.where(labels >= 0, values, 0).to(torch.float64)
    total = weights.sum(dim=1, keepdim=True)
    share = weights / total.masked_fill(total == 0, 1)
    entropy = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    for slot in range(values.shape[1]):
        same = labels == labels[:, slot : slot + 1]
        mass = torch.where(same, share, 0).sum(dim=1)
        entropy -= share[:, slot] * mass.masked_fill(mass == 0, 1).log()
    defined = (labels >= 0).sum(dim=1) >= minimum
    return torch.where(defined, entropy.clamp_min(0), 0), defined


def label_std(labels: Tensor) -> Tensor:
    """Population standard deviation of the label indices of every latent's reference images.

    labels: int64 [S, n], -1 where there is no image or no label. Returns float64 [S], 0 where there is no label at all.
    """
    known = labels >= 0
    count = known.sum(dim=1).clamp_min(1)
    index = torch.where(known, labels, 0).to(torch.float64)
    mean = index.sum(dim=1) / count
    squared = torch.where(known, (index - mean[:, None]) ** 2, 0).sum(dim=1)
    return (squared / count).sqrt()


def majority_label(values: Tensor, labels: Tensor) -> Tensor:
    """The label that carries most of every latent's reference activations: int64 [S], -1 without labels.

    values, labels: as in :func:`label_entropy`. Ties go to the label whose image ranks first.
    """
    weights = torch.where(labels >= 0, values, 0).to(torch.float64)
    mass = torch.stack(
        [torch.where(labels == labels[:, slot : slot + 1], weights, 0).sum(dim=1) for slot in range(labels.shape[1])],
        dim=1,
    )
    return labels.gather(1, mass.argmax(dim=1, keepdim=True)).squeeze(1)

"""Which latents a token keeps, where whoever loads a file says it, or a reader takes something for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patchsae.models.checkpoints.fold import at_least
from patchsae.models.checkpoints.format import Answers


class Chosen(NamedTuple):
    """Attributes:

    activation, k: as in `SAEConfig`.
    threshold: of "jumprelu", ``[S]``.
    """

    activation: str
    k: int | None = None
    threshold: Tensor | None = None


def by_answers(answers: Answers, d_sae: int, otherwise: Chosen, top_k: str = "topk") -> Chosen:
    """What the answers say: k latents, by the activation ``top_k``, or those of at least a threshold.

    otherwise: what is taken where they say nothing.
    """
    if answers.k is not None:
        return Chosen(top_k, answers.k)
    return otherwise if answers.threshold is None else kept_from(answers.threshold, d_sae)


def kept_from(threshold: float | Tensor, d_sae: int) -> Chosen:
    """Positive latents of at least a threshold: a number, or one for each latent ``[S]``."""
    value = torch.as_tensor(threshold, dtype=torch.float64).expand(d_sae)
    return Chosen("jumprelu", None, at_least(value).contiguous())

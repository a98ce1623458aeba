"""The dictionaries of Overcomplete and its forks: rows that a constraint keeps, times a learned number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchsae.models.checkpoints.fold import row_norms, scaled_latents

PLAIN = {"dictionary._weights": "S D"}
ARCHETYPAL = {"dictionary.W": "S N", "dictionary.C": "N D", "dictionary.Relax": "S D"}
MULTIPLIER = {"dictionary.multiplier": ""}
NORMALISATIONS = ("l2", "max_l2", "l1", "max_l1", "identity")
EPSILON = 1e-8  # added to lengths and sums
DELTA = 1.0  # how long a row of Relax may be, where nothing says it
ROWS = 256  # of W widened at a time, which may have as many columns as there are latents
DRIFT = 0.1  # how far from its constraint an optimiser's last step may have left a row


def atoms(w: Mapping[str, Tensor], normalisation: str = "l2", delta: float = DELTA) -> Tensor:
    """The dictionary ``[S, D]``, float32, as it is evaluated.

    Args:
        w: the tensors of `PLAIN` or `ARCHETYPAL`, and of `MULTIPLIER` where there is one.
        normalisation: of a plain one, one of `NORMALISATIONS`.
        delta: of an archetypal one.
    """
    scale = w["dictionary.multiplier"].double().exp() if "dictionary.multiplier" in w else torch.ones(()).double()
    if "dictionary.W" in w:
        return _archetypal(w["dictionary.W"], w["dictionary.C"], w["dictionary.Relax"], delta, scale)
    rows = w["dictionary._weights"]
    return scaled_latents(rows, (scale / _lengths(rows, normalisation)).expand(len(rows)))


def unlike_default(w: Mapping[str, Tensor]) -> str | None:
    """What of a dictionary contradicts the constraint that is taken where a file says none; None: it fits."""
    if "dictionary.W" in w:
        longest = float(row_norms(w["dictionary.Relax"]).max())
        return f"Relax has rows of length {longest:.3g}, beyond {DELTA:g}" if longest > DELTA + DRIFT else None
    lengths = row_norms(w["dictionary._weights"])
    away = ((lengths - 1).abs() > DRIFT) & (lengths > 0)
    return f"{int(away.sum()):,} of {len(lengths):,} rows are not of length 1" if bool(away.any()) else None


def _lengths(rows: Tensor, normalisation: str) -> Tensor:
    """What each row is divided by, or all of them."""
    if normalisation == "identity":
        return torch.ones((), dtype=torch.float64)
    lengths = row_norms(rows) if normalisation.endswith("l2") else rows.abs().sum(1, dtype=torch.float64)
    return lengths.max() if normalisation.startswith("max") else lengths + EPSILON


def _archetypal(W: Tensor, C: Tensor, relax: Tensor, delta: float, scale: Tensor) -> Tensor:
    """``(W' C + Relax') scale``: rows of W' are positive and sum to 1, those of Relax' are no longer than delta."""
    points, made = C.double(), []
    for part, apart in zip(W.split(ROWS), relax.split(ROWS), strict=True):
        weights = part.double().clamp(min=0)
        weights /= weights.sum(1, keepdim=True) + EPSILON
        length = apart.double().norm(dim=1, keepdim=True)
        shortened = apart.double() * torch.where(length > delta, delta / length, 1)
        made.append(((weights @ points + shortened) * scale).float())
    return torch.cat(made)

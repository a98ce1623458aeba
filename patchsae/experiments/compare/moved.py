"""Latents that gain and lose most between two sides: by mean activation, and by their place in a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from patchsae.experiments.compare.result import Comparison


class ClassShift(NamedTuple):
    """For S latents, where their tokens per image of a class change most."""

    gain: Tensor
    """float64 [S]: largest change over the classes, at least 0."""
    gain_label: Tensor
    """int64 [S]: the class of that; -1 where no class gains."""
    loss: Tensor
    """float64 [S]: smallest change over the classes, at most 0."""
    loss_label: Tensor
    """int64 [S]: the class of that; -1 where no class loses."""


def moved(comparison: Comparison, noisy_above: float, n: int) -> tuple[list[int], list[int]]:
    """Up to ``n`` latents that gain most mean activation and up to ``n`` that lose most; noisy ones left out."""
    return _extremes(comparison.shift, comparison.shift, _shown(comparison, noisy_above), n)


def moved_in_class(comparison: Comparison, noisy_above: float, n: int) -> tuple[list[int], list[int]]:
    """The same by the largest gain and the largest loss of tokens per image in any one class; none without labels."""
    shifts = comparison.class_shift
    return ([], []) if shifts is None else _extremes(shifts.gain, shifts.loss, _shown(comparison, noisy_above), n)


def hidden(comparison: Comparison, noisy_above: float) -> int:
    """How many latents are left out as noisy: those of a larger mean activation on either side."""
    return int((~_shown(comparison, noisy_above)).sum())


def class_shift(before: Tensor, after: Tensor, images: Tensor) -> ClassShift:
    """How the tokens above tau in a class change, divided by the images of the class.

    before, after: int64 [C, S], class counts a_c of both sides; images: int64 [C], a class without any changes
    nothing. Ties go to the lower class.
    """
    gain, loss = torch.zeros(2, before.shape[1], dtype=torch.float64)
    gain_label, loss_label = torch.full((2, before.shape[1]), -1)
    for label in images.nonzero().squeeze(1).tolist():
        change = (after[label] - before[label]) / images[label].double()
        for sign, most, where in ((1, gain, gain_label), (-1, loss, loss_label)):
            further = sign * change > sign * most
            most[further], where[further] = change[further], label
    return ClassShift(gain, gain_label, loss, loss_label)


def class_shift_columns(shifts: ClassShift, classnames: Sequence[str]) -> dict[str, list[str | None] | np.ndarray]:
    """Columns of a table of latents."""
    columns: dict[str, list[str | None] | np.ndarray] = {}
    for what, values, labels in (
        ("gain", shifts.gain, shifts.gain_label),
        ("loss", shifts.loss, shifts.loss_label),
    ):
        columns[f"class_{what}"] = values.numpy()
        columns[f"class_{what}_in"] = [classnames[label] if label >= 0 else None for label in labels.tolist()]
    return columns


def _shown(comparison: Comparison, noisy_above: float) -> Tensor:
    return ~(comparison.noise > noisy_above).any(dim=0)


def _extremes(gains: Tensor, losses: Tensor, shown: Tensor, n: int) -> tuple[list[int], list[int]]:
    """The latents with the largest positive gains and with the smallest negative losses; ties go to the lower one."""
    gain, loss = torch.where(shown, gains, 0), torch.where(shown, losses, 0)
    first, last = gain.argsort(descending=True, stable=True)[:n], loss.argsort(stable=True)[:n]
    return first[gain[first] > 0].tolist(), last[loss[last] < 0].tolist()

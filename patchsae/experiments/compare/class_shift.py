"""Where the tokens of a class change most between two sides, for every latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


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

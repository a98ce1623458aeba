"""Latents that gain and lose most between two sides: by mean activation, and by their place in a class."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae.experiments.compare.result import Comparison


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


def _shown(comparison: Comparison, noisy_above: float) -> Tensor:
    return ~(comparison.noise > noisy_above).any(dim=0)


def _extremes(gains: Tensor, losses: Tensor, shown: Tensor, n: int) -> tuple[list[int], list[int]]:
    """The latents with the largest positive gains and with the smallest negative losses; ties go to the lower one."""
    gain, loss = torch.where(shown, gains, 0), torch.where(shown, losses, 0)
    first, last = gain.argsort(descending=True, stable=True)[:n], loss.argsort(stable=True)[:n]
    return first[gain[first] > 0].tolist(), last[loss[last] < 0].tolist()

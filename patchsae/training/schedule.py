"""The released learning-rate schedule."""

from __future__ import annotations


def learning_rate(step: int, *, lr: float, warm_up_steps: int) -> float:
    """The rate of step `step` (from 0): `lr * min(1, (step + 1) / warm_up_steps)`, constant after the warm-up.

    `warm_up_steps` 0 means no warm-up. The first step already moves, by `lr / warm_up_steps`.
    """
    if step < 0:
        raise ValueError(f"step is {step}; expected 0 or more")
    if step + 1 >= warm_up_steps:
        return lr
    return lr * (step + 1) / warm_up_steps

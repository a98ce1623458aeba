"""The learning rate of a recipe."""

from __future__ import annotations

import math

from patchsae.adapt.recipes import Recipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step ``step``, from 0, as Dassl's warm-up schedulers around PyTorch's cosine give it.

    With U epochs (or steps, whichever the recipe counts) of which W are warm-up, unit u has the rate ``warm_up_lr``
    (constant), or ``lr * u / W`` and ``warm_up_lr`` at u = 0 (linear), for u < W, and
    ``final_lr + (lr - final_lr) * (1 + cos(pi * (u - W) / U)) / 2`` after that: the cosine is counted anew after the
    warm-up but runs over U, so that it ends W units early.
    """
    if step < 0:
        raise ValueError(f"step is {step}; expected 0 or more")
    total = recipe.epochs or recipe.steps or 1
    unit = step if recipe.epochs is None else step // steps_per_epoch
    if unit < recipe.warm_up:
        if recipe.warm_up_kind == "constant" or unit == 0:
            return recipe.warm_up_lr
        return recipe.lr * unit / recipe.warm_up
    share = (1 + math.cos(math.pi * (unit - recipe.warm_up) / total)) / 2
    return recipe.final_lr + (recipe.lr - recipe.final_lr) * share

"""The learning rate is that of Dassl's warm-up around PyTorch's cosine."""

from __future__ import annotations

import math

import pytest
import torch

from patchsae.adapt.recipes import Recipe, published


def cosine_of_torch(lr: float, units: int, final: float) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, units, final)
    rates = []
    for _ in range(units):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return rates


def test_one_constant_epoch_and_then_the_cosine_from_its_start() -> None:
    recipe = published("coop", "few-shot", 1, 10)
    rates = [recipe.rate(step, 3) for step in range(150)]
    assert rates[:3] == [1e-5] * 3
    assert rates[3:] == pytest.approx([rate for rate in cosine_of_torch(0.002, 50, 0.0)[:49] for _ in range(3)])


def test_by_step_without_a_warm_up_it_is_pytorchs_cosine() -> None:
    recipe = published("lora", "few-shot", 1, 10)
    assert [recipe.rate(step, 3) for step in range(500)] == pytest.approx(cosine_of_torch(2e-4, 500, 1e-6))


def test_a_linear_warm_up_rises_to_the_peak() -> None:
    recipe = Recipe("adamw", 1e-3, 0.0, 8, steps=100, warm_up=50, warm_up_kind="linear")
    rates = [recipe.rate(step, 1) for step in range(100)]
    assert rates[:3] == pytest.approx([1e-5, 2e-5, 4e-5])
    assert rates[49:51] == pytest.approx([1e-3 * 49 / 50, 1e-3])
    assert rates[99] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 49 / 100)) / 2)


def test_a_step_before_the_first_is_an_error() -> None:
    with pytest.raises(ValueError, match="step is -1"):
        published("maple", "few-shot", 1, 10).rate(-1, 3)

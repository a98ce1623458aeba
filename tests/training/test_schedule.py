"""The learning rate equals the released LambdaLR, step for step."""

from __future__ import annotations

import pytest
import torch

from patchsae.training.schedule import learning_rate


@pytest.mark.parametrize("warm_up_steps", [1, 2, 7, 500])
def test_equals_the_released_scheduler(warm_up_steps: int) -> None:
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=4e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm_up_steps))
    for step in range(warm_up_steps + 3):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(step, lr=4e-4, warm_up_steps=warm_up_steps) == pytest.approx(expected, rel=1e-14)
        optimizer.step()
        scheduler.step()


def test_no_warm_up_is_constant() -> None:
    assert [learning_rate(step, lr=0.1, warm_up_steps=0) for step in range(3)] == [0.1, 0.1, 0.1]


def test_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step is -1"):
        learning_rate(-1, lr=0.1, warm_up_steps=5)

"""Latents that gain and lose most, against loops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.experiments.compare.class_shift import class_shift, class_shift_columns
from patchsae.experiments.compare.moved import hidden, moved, moved_in_class

S = 5
table = st.lists(st.lists(st.integers(0, 6), min_size=S, max_size=S), min_size=1, max_size=4)


@given(table, st.randoms(use_true_random=False))
def test_the_class_that_moved_most_agrees_with_loops(before, random) -> None:
    after = [random.sample(row, S) for row in before]
    images = [random.randint(0, 3) for _ in before]
    found = class_shift(torch.tensor(before), torch.tensor(after), torch.tensor(images))
    for s in range(S):
        changes = [((b[s] - a[s]) / n, c) for c, (a, b, n) in enumerate(zip(before, after, images, strict=True)) if n]
        gain = max((change for change, _ in changes), default=0)
        loss = min((change for change, _ in changes), default=0)
        assert found.gain[s].item() == pytest.approx(max(gain, 0))
        assert found.loss[s].item() == pytest.approx(min(loss, 0))
        assert found.gain_label[s] == next((c for change, c in changes if change == gain > 0), -1)
        assert found.loss_label[s] == next((c for change, c in changes if change == loss < 0), -1)


def test_columns_name_the_class_or_nothing() -> None:
    found = class_shift(torch.tensor([[0, 4], [0, 4]]), torch.tensor([[0, 4], [2, 4]]), torch.tensor([1, 2]))
    columns = class_shift_columns(found, ["ant", "bee"])
    assert columns["class_gain"].tolist() == [1.0, 0.0]
    assert columns["class_gain_in"] == ["bee", None]
    assert columns["class_loss_in"] == [None, None]


def test_noisy_latents_are_left_out_and_the_order_is_by_the_change() -> None:
    shift = torch.tensor([0.5, 2.0, -1.0, 1.0, -3.0, 0.0])
    noise = torch.zeros(2, 6)
    noise[1, 4] = 9.0
    shifts = class_shift(torch.zeros(1, 6).long(), torch.tensor([[1, 3, -2, 2, -9, 0]]), torch.tensor([1]))
    comparison = SimpleNamespace(shift=shift, noise=noise, class_shift=shifts)
    assert moved(comparison, 1.0, 2) == ([1, 3], [2])
    assert moved_in_class(comparison, 1.0, 9) == ([1, 3, 0], [2])
    assert moved(comparison, 10.0, 9) == ([1, 3, 0], [4, 2])
    assert [hidden(comparison, above) for above in (1.0, 10.0)] == [1, 0]
    comparison.class_shift = None
    assert moved_in_class(comparison, 1.0, 9) == ([], [])

"""Label entropy and standard deviation against the formulas of recipe.md written as loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.experiments.extract.label_spread import label_entropy, label_std, majority_label

slots = st.lists(st.tuples(st.floats(0.015625, 10, width=32), st.integers(-1, 3)), min_size=1, max_size=12)


def tensors(entries):
    values, labels = zip(*entries, strict=True)
    return torch.tensor([values]), torch.tensor([labels])


@given(slots)
def test_agree_with_the_formulas(entries) -> None:
    values, labels = tensors(entries)
    labelled = [(float(v), c) for v, c in zip(values[0], labels[0].tolist(), strict=True) if c >= 0]
    entropy, defined = label_entropy(values, labels, minimum=5)
    assert bool(defined) == (len(labelled) >= 5)
    if defined:
        total = sum(v for v, _ in labelled)
        share = [sum(v for v, c in labelled if c == label) / total for label in range(4)]
        expected = -sum(p * math.log(p) for p in share if p > 0)
        assert entropy.item() == pytest.approx(expected, abs=1e-12)
    else:
        assert entropy.item() == 0
    if labelled:
        assert label_std(labels).item() == pytest.approx(statistics.pstdev([c for _, c in labelled]), abs=1e-12)
        mass = {c: sum(v for v, x in labelled if x == c) for _, c in labelled}
        assert mass[majority_label(values, labels).item()] == pytest.approx(max(mass.values()))


def test_a_latent_without_images_has_no_entropy_and_no_nan() -> None:
    values, labels = torch.zeros(1, 10), torch.full((1, 10), -1)
    entropy, defined = label_entropy(values, labels)
    assert not defined
    assert entropy.item() == 0
    assert label_std(labels).item() == 0
    assert majority_label(values, labels).item() == -1


def test_shares_are_of_activation_not_of_images() -> None:
    values = torch.tensor([[3.0] + [1.0 / 9] * 9])
    labels = torch.tensor([[0] + [1] * 9])
    entropy, defined = label_entropy(values, labels)
    assert defined
    assert entropy.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))

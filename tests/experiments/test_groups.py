"""Base and novel classes: the halves, and whom an image competes with."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.experiments.accuracies import accuracy_columns, improvement
from patchsae.experiments.groups import class_groups, group_of, harmonic_mean, reported_groups
from patchsae.experiments.zero_shot import ZeroShot


@given(st.integers(2, 50))
def test_the_groups_part_the_classes_and_the_base_is_the_larger_half(classes) -> None:
    groups = class_groups("base-novel", classes)
    assert [label for labels in groups.values() for label in labels] == list(range(classes))
    assert len(groups["base"]) == math.ceil(classes / 2)
    assert list(reported_groups("base-novel", classes)) == ["all", "base", "novel"]
    assert group_of("base-novel", classes).tolist() == [int(label in groups["novel"]) for label in range(classes)]
    assert group_of("none", classes).unique().tolist() == [0]


def test_one_class_cannot_be_parted() -> None:
    with pytest.raises(ValueError, match="expected at least 2"):
        class_groups("base-novel", 1)


@given(st.integers(2, 6), st.integers(0, 99))
def test_within_a_group_is_classification_by_that_groups_classifier(classes, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights, embedding = torch.randn(classes, 5, generator=generator), torch.randn(12, 5, generator=generator)
    labels = torch.randint(0, classes, (12,), generator=generator)
    found = ZeroShot(weights, group_of("base-novel", classes)).correct(embedding, labels)
    for members in class_groups("base-novel", classes).values():
        mine = torch.isin(labels, torch.tensor(list(members)))
        alone = ZeroShot(weights[members.start : members.stop]).correct(embedding[mine], labels[mine] - members.start)
        assert torch.equal(found[mine], alone)


def test_an_image_without_label_is_not_correct() -> None:
    assert ZeroShot(torch.eye(2)).correct(torch.eye(2), torch.tensor([-1, 1])).tolist() == [False, True]


def test_the_harmonic_mean_stands_below_base_and_novel() -> None:
    columns = accuracy_columns(("A", "B"), {"base": (0.5, 0.75), "novel": (0.25, 0.75)})
    assert columns["group"] == ["base", "base", "novel", "novel", "harmonic mean", "harmonic mean"]
    assert columns["accuracy"] == [0.5, 0.75, 0.25, 0.75, pytest.approx(1 / 3), 0.75]
    assert columns["delta"] == [None, 0.5, None, improvement(0.25, 0.75), None, improvement(1 / 3, 0.75)]


def test_the_harmonic_mean_is_that_of_the_literature() -> None:
    assert harmonic_mean(0.8228, 0.7514) == pytest.approx(0.7855, abs=5e-5)
    assert harmonic_mean(0.3, 0.9) == pytest.approx(statistics.harmonic_mean([0.3, 0.9]))
    assert harmonic_mean(0.0, 0.5) == harmonic_mean(0.0, 0.0) == 0.0

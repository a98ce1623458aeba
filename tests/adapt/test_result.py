"""Accuracies, their means, and the tables."""

from __future__ import annotations

import pytest

from patchsae.adapt.evaluation import PartResult
from patchsae.adapt.result import Row, class_columns, rows, summary

BASE = PartResult("base", ["ant", "bee"], [3, 1], [3, 0], [1, 1], [])
NOVEL = PartResult("novel", ["cat", "dog"], [4, 0], [2, 0], [4, 0], [])


def test_an_accuracy_is_a_share_of_images_not_a_mean_over_classes() -> None:
    assert (BASE.accuracy, BASE.clip_accuracy) == (0.75, 0.5)


def test_base_to_novel_ends_with_the_harmonic_mean_of_both_models() -> None:
    table = rows([BASE, NOVEL], "base-to-novel")
    assert table[0] == Row("base", 2, 4, 0.75, 0.5)
    assert table[1] == Row("novel", 2, 4, 0.5, 1.0)
    assert table[2] == Row("harmonic mean", None, None, pytest.approx(0.6), pytest.approx(2 / 3))


def test_across_datasets_the_mean_is_over_the_targets_alone() -> None:
    table = rows([BASE, NOVEL, NOVEL], "cross-dataset")
    assert [row.part for row in table] == ["base", "novel", "novel", "mean of targets"]
    assert table[-1].accuracy == 0.5


def test_few_shot_has_one_row() -> None:
    assert len(rows([BASE], "few-shot")) == 1


def test_a_class_without_images_has_no_accuracy() -> None:
    columns = class_columns([BASE, NOVEL])
    assert columns["label"] == [0, 1, 0, 1]
    assert columns["accuracy"] == [1.0, 0.0, 0.5, None]
    assert columns["clip_accuracy"] == [1 / 3, 1.0, 1.0, None]


def test_the_summary_is_mean_and_sample_deviation() -> None:
    by_seed = {seed: [Row("all", 2, 4, accuracy, 0.5)] for seed, accuracy in ((1, 0.5), (2, 0.6), (3, 0.7))}
    assert summary(by_seed) == {
        "part": ["all"],
        "mean": ["60.00%"],
        "standard deviation": ["10.00%"],
        "CLIP": ["50.00%"],
    }

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.data import DataError, ImageDataset, Sample, base_novel, few_shot, few_shot_pair


class Labels(ImageDataset):
    """A dataset of labels only."""

    def __init__(self, labels):
        super().__init__("labels", np.array(labels, np.int64), ["a", "b", "c", "d", "e"])

    def ids(self, i: int) -> str:
        return str(i)

    def sample(self, i: int) -> Sample:
        raise AssertionError("draws never decode")


labels = st.lists(st.integers(0, 4), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)
shots = st.integers(1, 12)


def _ids(dataset):
    return [int(dataset.ids(i)) for i in range(len(dataset))]


def _as_published(splits, numbers, seed):
    """The draw of the public code told again: one global stream, classes in order of appearance, small ones whole."""
    random.seed(seed)
    drawn = []
    for values, number in zip(splits, numbers, strict=True):
        of_class: dict[int, list[tuple[int, int]]] = {}
        for item in enumerate(values):
            of_class[item[1]] = [*of_class.get(item[1], []), item]
        chosen = []
        for items in of_class.values():
            take = items if len(items) < number else random.sample(items, number)
            chosen.extend(position for position, _ in take)
        drawn.append(chosen)
    return drawn


@given(labels, labels, shots, seeds)
def test_the_draw_is_the_published_one_for_train_then_val(train, val, n, seed):
    expected = _as_published((train, val), (n, min(n, 4)), seed)
    pair = few_shot_pair(Labels(train), Labels(val), n, seed)
    assert [_ids(part) for part in pair] == expected
    assert _ids(few_shot(Labels(train), n, seed)) == expected[0]


def test_a_draw_of_today_is_the_draw_of_any_day():
    """What `random.seed(1)` makes of `random.sample(range(10), 3)` twice, with a small class between them."""
    dataset = Labels([2] * 10 + [0, 0] + [1] * 10)
    assert _ids(few_shot(dataset, 3, seed=1)) == [2, 1, 4, 10, 11, 13, 19, 20]


@given(labels, shots, seeds)
def test_every_class_gets_its_shots_or_all_it_has_in_order_of_appearance(values, n, seed):
    dataset = Labels(values)
    drawn = few_shot(dataset, n, seed)
    assert drawn.labels.tolist() == [c for c in dict.fromkeys(values) for _ in range(min(n, values.count(c)))]
    assert len(set(_ids(drawn))) == len(drawn)
    assert drawn.fingerprint == few_shot(dataset, n, seed).fingerprint


@given(labels, shots, seeds)
def test_the_global_stream_is_left_alone(values, n, seed):
    before = random.getstate()
    few_shot_pair(Labels(values), Labels(values), n, seed)
    assert random.getstate() == before


def test_seeds_differ():
    dataset = Labels([0, 1] * 40)
    assert len({tuple(_ids(few_shot(dataset, 8, seed))) for seed in (1, 2, 3)}) == 3


def test_base_classes_are_taken_from_a_draw_over_all_classes():
    values = [4, 0, 3, 1, 2] * 6
    base, novel = base_novel(few_shot(Labels(values), 2, seed=1))
    drawn = _as_published([values], [2], 1)[0]
    assert _ids(base) == [position for position in drawn if values[position] < 3]
    assert _ids(novel) == [position for position in drawn if values[position] >= 3]


def test_arguments_out_of_range_are_named():
    with pytest.raises(DataError, match="shots is 0; expected at least 1 image per class"):
        few_shot(Labels([0]), 0, 1)
    with pytest.raises(DataError, match="seed is -1"):
        few_shot(Labels([0]), 1, -1)
    with pytest.raises(DataError, match="labels has 2 images without label"):
        few_shot(Labels([0, -1, -1]), 1, 1)

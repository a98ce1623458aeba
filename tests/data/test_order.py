from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.data import DataError, ImageDataset, ReadGroups, Sample, holdout, limit, shuffled_order, train_order


class Labels(ImageDataset):
    """A dataset of labels only."""

    def __init__(self, labels):
        super().__init__("labels", np.array(labels, np.int64), ["a", "b", "c", "d"])

    def ids(self, i: int) -> str:
        return str(i)

    def sample(self, i: int) -> Sample:
        raise AssertionError("orders never decode")


labels = st.lists(st.integers(-1, 3), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)


@given(st.integers(0, 200), st.integers(0, 5), seeds)
def test_an_order_visits_everything_once_and_repeats_itself(n, epoch, seed):
    order = shuffled_order(n, epoch, seed)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, shuffled_order(n, epoch, seed))


def test_epochs_and_seeds_differ():
    orders = [tuple(shuffled_order(100, epoch, seed)) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 4), seeds)
def test_a_grouped_order_visits_everything_once_and_each_group_in_one_window(sizes, together, seed):
    starts = np.concatenate([[0], np.cumsum(sizes)])
    order = shuffled_order(int(starts[-1]), 0, seed, ReadGroups(starts, together))
    assert np.array_equal(np.sort(order), np.arange(starts[-1]))
    group = np.searchsorted(starts, order, side="right") - 1
    left = {g: sizes[g] for g in range(len(sizes))}
    open_groups: set[int] = set()
    for g in group.tolist():
        open_groups.add(g)
        assert len(open_groups) <= together
        left[g] -= 1
        if all(left[o] == 0 for o in open_groups):
            open_groups.clear()


def test_groups_of_another_dataset_are_refused():
    with pytest.raises(DataError, match=r"groups covers 0 .. 5; expected 0 .. n = 7"):
        shuffled_order(7, 0, 0, ReadGroups(np.array([0, 5]), 1))


@given(st.integers(1, 30), st.integers(0, 100), seeds)
def test_a_training_order_is_whole_epochs_then_a_part(n, images, seed):
    order = train_order(n, images, seed)
    assert len(order) == images
    for epoch in range(images // n):
        assert np.array_equal(order[epoch * n : (epoch + 1) * n], shuffled_order(n, epoch, seed))
    assert len(set(order[images // n * n :].tolist())) == images % n


def test_an_empty_dataset_cannot_train():
    with pytest.raises(DataError, match="n is 0"):
        train_order(0, 1, 0)


@given(labels, st.integers(1, 70), seeds)
def test_limit_is_as_even_as_the_classes_allow(values, n, seed):
    subset = limit(Labels(values), n, seed)
    assert len(subset) == min(n, len(values))
    kept = {c: int((subset.labels == c).sum()) for c in set(values)}
    for c, count in kept.items():
        if count < values.count(c):
            assert max(kept.values()) <= count + 1


@given(labels, st.integers(1, 69), seeds)
def test_a_larger_limit_contains_the_smaller_one_in_dataset_order(values, n, seed):
    small, large = limit(Labels(values), n, seed), limit(Labels(values), n + 1, seed)
    ids = [int(small.ids(i)) for i in range(len(small))]
    assert ids == sorted(ids)
    assert set(ids) <= {int(large.ids(i)) for i in range(len(large))}


def test_limit_takes_small_classes_whole_and_shares_the_rest():
    subset = limit(Labels([0] * 90 + [1] * 3 + [2] * 40), 23, 0)
    assert np.bincount(subset.labels).tolist() == [10, 3, 10]


def test_limit_depends_on_the_seed():
    dataset = Labels([0, 1] * 50)
    picks = {tuple(limit(dataset, 10, seed).ids(i) for i in range(10)) for seed in range(5)}
    assert len(picks) == 5


@given(labels, st.floats(0.05, 0.95), seeds)
def test_holdout_cuts_every_class_by_the_share(values, share, seed):
    rest, held = holdout(Labels(values), share, seed)
    ids = [part.ids(i) for part in (rest, held) for i in range(len(part))]
    assert sorted(ids, key=int) == [str(i) for i in range(len(values))]
    for c in set(values):
        assert abs((held.labels == c).sum() - share * values.count(c)) <= 0.5


def test_arguments_out_of_range_are_named():
    with pytest.raises(DataError, match="n is 0; expected at least 1 image"):
        limit(Labels([0]), 0, 0)
    with pytest.raises(DataError, match=r"share is 1.0"):
        holdout(Labels([0]), 1.0, 0)
    with pytest.raises(DataError, match="epoch is -1"):
        shuffled_order(5, -1, 0)

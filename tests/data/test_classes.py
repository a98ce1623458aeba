from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.data import DataError, base_novel, open_images, relabelled

from .test_few_shots import Labels, labels


def _of_class(dataset):
    return [(dataset.ids(i), dataset.classnames[dataset.labels[i]]) for i in range(len(dataset))]


@given(labels)
def test_base_and_novel_share_nothing_and_have_everything(values):
    dataset = Labels(values)
    base, novel = base_novel(dataset)
    assert (base.classnames, novel.classnames) == (["a", "b", "c"], ["d", "e"])
    assert sorted(_of_class(base) + _of_class(novel)) == sorted(_of_class(dataset))
    assert set(_of_class(base)).isdisjoint(_of_class(novel))
    for part in (base, novel):
        assert [int(part.ids(i)) for i in range(len(part))] == sorted(int(part.ids(i)) for i in range(len(part)))
        assert set(part.labels.tolist()) <= set(range(len(part.classnames)))


@given(labels, st.permutations(range(5)), st.integers(1, 5))
def test_relabelled_classes_come_in_the_order_asked(values, order, n):
    dataset = Labels([*values, -1])
    part = relabelled(dataset, order[:n])
    assert part.classnames == ["abcde"[label] for label in order[:n]]
    assert _of_class(part) == [(id, name) for id, name in _of_class(Labels(values)) if name in part.classnames]


def test_samples_carry_the_new_label(write_files, number_of):
    root = write_files({"a/1.png": 1, "b/2.png": 2, "c/3.png": 3})
    _, novel = base_novel(open_images(root))
    for dataset in (novel, pickle.loads(pickle.dumps(novel)), novel.subset([0])):
        sample = dataset.sample(0)
        assert (sample.label, sample.id, number_of(sample.image)) == (0, "c/3.png", 3)
    assert novel.name == "root"
    assert novel.fingerprint != open_images(root).fingerprint


def test_what_cannot_be_divided_is_refused(write_files):
    root = write_files({"plain/1.png": 1, "sub/a/2.png": 2})
    with pytest.raises(DataError, match="has no labels"):
        base_novel(open_images(root / "plain"))
    with pytest.raises(DataError, match="has 1 class; expected at least 2"):
        base_novel(open_images(root / "sub"))
    for classes, came in (([0, 5], "5"), ([-1], "-1"), ([1, 1], "a label twice")):
        with pytest.raises(DataError, match=rf"classes has {came}; expected distinct labels within 0 \.\. 4"):
            relabelled(Labels([0]), classes)

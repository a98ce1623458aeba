"""What each setting trains and tests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchsae.adapt.options import AdaptOptions
from patchsae.adapt.task import make_task
from patchsae.data import base_novel, few_shot, open_images
from patchsae.data.base import DataError

from .tiny import OTHER, TEST, TRAIN

train, test, other = open_images(TRAIN), open_images(TEST), open_images(OTHER)


def ids(dataset: Any) -> list[str]:
    return [dataset.ids(i) for i in range(len(dataset))]


def test_few_shot_trains_on_exactly_the_drawn_images_and_tests_all_classes() -> None:
    task = make_task(AdaptOptions(setting="few-shot", shots=2, seed=3), train, test)
    assert ids(task.training) == ids(few_shot(train, 2, 3))
    assert [(part.name, part.dataset) for part in task.parts] == [("all", test)]


def test_base_classes_are_taken_from_the_draw_over_all_classes() -> None:
    task = make_task(AdaptOptions(setting="base-to-novel", shots=2, seed=3), train, test)
    drawn = few_shot(train, 2, 3)
    assert ids(task.training) == ids(drawn.subset(np.flatnonzero(drawn.labels < 4)))
    assert task.training.classnames == train.classnames[:4]
    assert set(task.training.labels.tolist()) == {0, 1, 2, 3}


def test_base_and_novel_cover_the_test_split_and_both_count_from_zero() -> None:
    task = make_task(AdaptOptions(setting="base-to-novel", shots=2), train, test)
    base, novel = (part.dataset for part in task.parts)
    assert [part.name for part in task.parts] == ["base", "novel"]
    assert sorted(ids(base) + ids(novel)) == sorted(ids(test))
    assert novel.classnames == test.classnames[4:]
    truth = dict(zip(ids(test), test.labels.tolist(), strict=True))
    assert all(truth[novel.ids(i)] == novel.labels[i] + 4 == novel.sample(i).label + 4 for i in range(len(novel)))
    assert ids(novel) == ids(base_novel(test)[1])


def test_cross_dataset_tests_the_source_and_every_target_with_its_own_classes() -> None:
    task = make_task(AdaptOptions(setting="cross-dataset", shots=2), train, test, [other, other])
    assert [part.name for part in task.parts] == [test.name, other.name, f"{other.name} (2)"]
    assert task.parts[1].dataset.classnames == other.classnames
    assert len(task.training) == 2 * len(train.classnames)


@pytest.mark.parametrize(
    ("changes", "targets", "message"),
    [
        ({"setting": "cross-dataset"}, [], "expected at least one other dataset"),
        ({"setting": "few-shot"}, [other], "expected none, except for --setting cross-dataset"),
        ({"adapter": "linear"}, [], "a linear probe knows only the classes it was trained on"),
    ],
)
def test_settings_that_make_no_sense_are_errors(changes: dict, targets: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(AdaptOptions(**changes), train, test, targets)


def test_splits_of_two_datasets_are_an_error_that_names_a_class() -> None:
    with pytest.raises(DataError, match="expected two splits of one dataset"):
        make_task(AdaptOptions(), train, other)
    with pytest.raises(DataError, match=r"of them, not 8|label 0 is"):
        make_task(AdaptOptions(), train, open_images("shapes:test?n=5&label=style"))


def test_images_without_labels_are_an_error(tmp_path) -> None:
    train.sample(0).image.save(tmp_path / "one.png")
    with pytest.raises(DataError, match="has no labels"):
        make_task(AdaptOptions(), train, open_images(str(tmp_path)))

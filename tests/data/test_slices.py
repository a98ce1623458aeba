"""Slices of a split: complementary slices share no image and together have all; percentages keep every class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchsae.data import DataError, open_images
from patchsae.data.slices import cut


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sliced")
    for name, count in (("ant", 3), ("bee", 10), ("cow", 7)):
        (folder / name).mkdir()
        for i in range(count):
            Image.new("RGB", (2, 2), (i, 0, 0)).save(folder / name / f"{i}.png")
    return str(folder)


@given(bound=st.one_of(st.integers(0, 25).map(str), st.integers(0, 100).map("{}%".format)))
def test_complementary_slices_partition_the_dataset(root, bound):
    whole = open_images(root)
    parts = [open_images(root, f"[:{bound}]"), open_images(root, f"[{bound}:]")]
    ids = [part.ids(i) for part in parts for i in range(len(part))]
    assert sorted(ids) == sorted(whole.ids(i) for i in range(len(whole)))


def test_percentages_count_within_each_class(root):
    assert np.bincount(open_images(root, "[:70%]").labels).tolist() == [2, 7, 5]
    assert np.bincount(open_images(root, "[70%:]").labels).tolist() == [1, 3, 2]


def test_positions_count_over_the_dataset(root):
    part = open_images(root, "[3:13]")
    assert part.labels.tolist() == [1] * 10


def test_a_slice_of_a_named_split():
    assert len(open_images("shapes?n=40", "test[:25%]")) < 40
    assert cut("train[:5]")[0] == "train"
    assert cut("train") == ("train", None)


@pytest.mark.parametrize("split", ["train[5]", "[a:b]", "train[:5", "[:%]", "[-1:]"])
def test_other_brackets_are_refused(root, split):
    with pytest.raises(DataError, match="expected a slice"):
        open_images(root, split)

from __future__ import annotations

import pickle

import numpy as np
import pytest

from patchsae.data import BadImage, DataError, open_images
from patchsae.data.classes import relabelled


def test_labels_outside_the_classes_are_refused():
    from patchsae.data.files import FileDataset

    for wrong in (2, -2):
        with pytest.raises(DataError, match=f"labels has {wrong}; expected -1 .* within 0 .. 1"):
            FileDataset("x", ".", ["a.png"], np.array([wrong]), ["a", "b"])


def test_subset_of_subset_is_the_composition(write_files, number_of):
    dataset = open_images(write_files({f"c{n % 3}/{n}.png": n for n in range(9)}))
    twice = dataset.subset([8, 2, 5, 5]).subset([1, 3])
    assert [twice.ids(i) for i in range(2)] == [dataset.ids(2), dataset.ids(5)]
    for i, parent in enumerate((2, 5)):
        sample = twice.sample(i)
        assert number_of(sample.image) == number_of(dataset.sample(parent).image)
        assert sample.label == twice.labels[i] == dataset.labels[parent]
    assert twice.classnames == dataset.classnames


def test_subset_refuses_positions_outside(write_files):
    dataset = open_images(write_files({"a/1.png": 1, "b/2.png": 2}))
    with pytest.raises(DataError, match=r"indices has -1; expected positions \[m\] within 0 .. 1"):
        dataset.subset([0, -1])
    with pytest.raises(DataError, match="indices has 2"):
        dataset.subset([2])


@pytest.mark.parametrize("i", [-1, 1])
def test_no_dataset_takes_the_place_of_no_image_for_its_last(write_files, i):
    """-1 stands for no image in the tables of reference images."""
    dataset = open_images(write_files({"a/1.png": 1, "b/2.png": 2}))
    for images in (dataset.subset([1]), dataset.subset([0, 1]).subset([1]), relabelled(dataset, [1])):
        assert images.ids(0) == "b/2.png"
        for read in (images.ids, images.sample):
            with pytest.raises(IndexError, match=f"position {i} is outside 0 .. 0"):
                read(i)


def test_fingerprint_is_that_of_the_content_and_its_order(write_files):
    root = write_files({f"c{n % 2}/{n}.png": n for n in range(6)})
    dataset, same = open_images(root), open_images(root)
    assert dataset.fingerprint == same.fingerprint == dataset.subset(range(6)).fingerprint
    others = [dataset.subset(order).fingerprint for order in ([1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 4], [])]
    same.classnames = ["c0", "renamed"]
    del same.fingerprint
    assert len({dataset.fingerprint, *others, same.fingerprint}) == 5


def test_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("a/1.png", "it is empty")))
    assert (error.id, error.reason) == ("a/1.png", "it is empty")
    assert str(error) == "image 'a/1.png' cannot be read: it is empty"


def test_names_of_files_need_not_be_unicode(write_files, encode, number_of):
    root = write_files({"a/1.png": 1, "b/2.png": 2})
    with open(bytes(root / "a") + b"/\xff.png", "wb") as file:
        file.write(encode(3))
    dataset = pickle.loads(pickle.dumps(open_images(root)))
    assert sorted(number_of(dataset.sample(i).image) for i in range(3)) == [1, 2, 3]
    assert len(dataset.fingerprint) == 16

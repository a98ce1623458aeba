from __future__ import annotations

import pickle

import pytest

from patchsae.data import BadImage, DataError, batches, open_images, splits

datasets = pytest.importorskip("datasets")


@pytest.fixture
def table(encode):
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"picture": [{"bytes": encode(n), "path": None} for n in range(6)], "label": [0, 1, 0, 1, -1, 0]}
    return datasets.Dataset.from_dict(rows, features=features)


def _check(dataset, number_of, numbers):
    assert dataset.classnames == ["cat", "dog"]
    expected = [[0, 1, 0, 1, -1, 0][n] for n in numbers]
    assert dataset.labels.tolist() == expected
    samples = [dataset.sample(i) for i in range(len(dataset))]
    assert [number_of(sample.image) for sample in samples] == numbers
    assert [sample.label for sample in samples] == expected
    assert [sample.id for sample in samples] == [f"{dataset.name}#{i}" for i in range(len(numbers))]


def test_an_object(table, number_of):
    _check(open_images(table), number_of, [0, 1, 2, 3, 4, 5])


def test_selected_and_shuffled_rows_keep_their_labels(table, number_of):
    _check(open_images(table.select([5, 1, 3])), number_of, [5, 1, 3])


def test_a_saved_dataset(table, tmp_path, number_of):
    table.save_to_disk(tmp_path / "pets")
    dataset = open_images(tmp_path / "pets")
    assert dataset.name == "pets"
    _check(dataset, number_of, [0, 1, 2, 3, 4, 5])
    _check(pickle.loads(pickle.dumps(dataset)), number_of, [0, 1, 2, 3, 4, 5])


def test_a_saved_dictionary_has_splits(table, tmp_path, number_of):
    parts = datasets.DatasetDict({"train": table.select([0, 1]), "validation": table.select([3])})
    parts.save_to_disk(tmp_path / "pets")
    for source in (parts, tmp_path / "pets"):
        assert splits(source) == ["train", "validation"]
        _check(open_images(source, "val"), number_of, [3])
        with pytest.raises(DataError, match="split is not given"):
            open_images(source)


def test_a_damaged_row_is_bad_only_when_read(encode, number_of):
    rows = {"image": [{"bytes": encode(0)[:-26], "path": None}, {"bytes": encode(1), "path": None}]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    dataset = open_images(table)
    assert (dataset.classnames, dataset.labels.tolist()) == (None, [-1, -1])
    with pytest.raises(BadImage, match=r"dataset#0.*truncated"):
        dataset.sample(0)
    assert number_of(dataset.sample(1).image) == 1


def _to_pixels(image):
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_worker_processes_read_it_too(table):
    (batch,) = batches(open_images(table), _to_pixels, 6, workers=1)
    assert (batch.pixels[:, 0, 0, 0] * 255).round().int().tolist() == [0, 1, 2, 3, 4, 5]


def test_streams_and_tables_without_images_are_refused(table):
    with pytest.raises(DataError, match=r"source is a IterableDataset; expected a datasets.Dataset"):
        open_images(table.to_iterable_dataset())
    with pytest.raises(DataError, match="has columns label; expected one that holds images"):
        open_images(table.select_columns(["label"]))

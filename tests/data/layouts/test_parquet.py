from __future__ import annotations

import json
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsae.data import BadImage, DataError, open_images, shuffled_order, splits
from patchsae.data.row_groups import RowGroups

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "dog"], "_type": "ClassLabel"}}


@pytest.fixture
def write_shard(encode):
    """write_shard(path, numbers) -> a shard whose row r shows numbers[r] with label numbers[r] % 3."""

    def write(path, numbers, features=FEATURES, rows_per_group=4, **columns):
        image = [{"bytes": encode(n), "path": f"{n}.png"} for n in numbers]
        table = pa.table({"image": image, "label": pa.array([n % 3 for n in numbers], pa.int64()), **columns})
        if features is not None:
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=rows_per_group)
        return path

    return write


def _numbers(dataset, number_of):
    return [number_of(dataset.sample(i).image) for i in range(len(dataset))]


def test_a_file_with_class_names_in_its_metadata(tmp_path, write_shard, number_of):
    dataset = open_images(write_shard(tmp_path / "pets.parquet", range(10)))
    assert dataset.classnames == ["cat", "dog", "dog"]
    assert dataset.labels.tolist() == [n % 3 for n in range(10)]
    assert _numbers(dataset, number_of) == list(range(10))
    sample = dataset.sample(7)
    assert (sample.id, sample.label) == ("pets.parquet#7", 1)
    for i in (-1, 10):
        with pytest.raises(IndexError):
            dataset.sample(i)


def test_globs_and_folders_of_shards_are_read_in_order(tmp_path, write_shard, number_of):
    for s, numbers in enumerate([range(5), range(5, 6), range(6, 12)]):
        write_shard(tmp_path / f"data/train-{s:05}-of-00003.parquet", numbers)
    write_shard(tmp_path / "data/test-00000-of-00001.parquet", [100])
    assert splits(tmp_path) == ["train", "test"]
    train = open_images(tmp_path, "train")
    assert _numbers(train, number_of) == list(range(12))
    assert train.ids(7) == "data/train-00002-of-00003.parquet#1"
    assert _numbers(open_images(f"{tmp_path}/data/*.parquet", "test"), number_of) == [100]
    assert _numbers(open_images(f"{tmp_path}/data/train-*.parquet"), number_of) == list(range(12))
    assert _numbers(open_images(tmp_path / "data/test-00000-of-00001.parquet"), number_of) == [100]


def test_splits_by_folder_and_a_folder_without_splits(tmp_path, write_shard, number_of):
    write_shard(tmp_path / "a/train/0000.parquet", [1])
    write_shard(tmp_path / "a/validation/0000.parquet", [2])
    assert splits(tmp_path / "a") == ["train", "validation"]
    assert _numbers(open_images(tmp_path / "a", "val"), number_of) == [2]
    write_shard(tmp_path / "b/part0.parquet", [1, 2])
    write_shard(tmp_path / "b/part1.parquet", [3])
    assert splits(tmp_path / "b") == []
    assert _numbers(open_images(tmp_path / "b"), number_of) == [1, 2, 3]
    write_shard(tmp_path / "b/test.parquet", [4])
    with pytest.raises(DataError, match="mixes parquet files with and without a split"):
        open_images(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002-0a1b.parquet", "train"),
        ("train_clean-00000-of-00002.parquet", "train_clean"),
        ("cifar10-test.parquet", "test"),
        ("validation_3.parquet", "validation"),
        ("photos-2023.parquet", None),
        ("train-test.parquet", None),
    ],
)
def test_the_split_is_read_from_the_name_of_a_shard(tmp_path, write_shard, name, split):
    path = write_shard(tmp_path / "data" / name, [0])
    assert splits(path) == splits(tmp_path) == ([split] if split else [])
    assert open_images(path, split).name == path.stem
    assert open_images(tmp_path).name == tmp_path.name + (f":{split}" if split else "")


def test_files_without_metadata(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.parquet", range(4), features=None)
    assert open_images(path).classnames == ["0", "1", "2"]


def test_text_labels_null_labels_and_no_labels(tmp_path, encode):
    images = [encode(n) for n in range(3)]
    pq.write_table(pa.table({"image": images, "label": ["dog", None, "cat"]}), tmp_path / "text.parquet")
    text = open_images(tmp_path / "text.parquet")
    assert (text.classnames, text.labels.tolist()) == (["cat", "dog"], [1, -1, 0])
    pq.write_table(pa.table({"image": images, "label": [1, None, 0]}), tmp_path / "null.parquet")
    assert open_images(tmp_path / "null.parquet").labels.tolist() == [1, -1, 0]
    pq.write_table(pa.table({"image": images, "caption": ["a", "b", "c"]}), tmp_path / "none.parquet")
    plain = open_images(tmp_path / "none.parquet")
    assert (plain.classnames, plain.labels.tolist()) == (None, [-1, -1, -1])


def test_fine_labels_are_preferred_over_coarse_ones(tmp_path, write_shard):
    features = {
        "img": {"_type": "Image"},
        "coarse_label": {"names": ["all"], "_type": "ClassLabel"},
        "fine_label": {"names": ["x", "y"], "_type": "ClassLabel"},
    }
    path = write_shard(
        tmp_path / "c.parquet",
        [0, 1],
        features,
        img=pa.array([{"bytes": b"", "path": None}] * 2),
        coarse_label=[0, 0],
        fine_label=[1, 0],
    )
    dataset: Any = open_images(path)
    assert (dataset.classnames, dataset.labels.tolist(), dataset.rows.column) == (["x", "y"], [1, 0], "img")


def test_rows_with_a_path_with_nothing_and_with_damage(tmp_path, encode, number_of):
    (tmp_path / "there.png").write_bytes(encode(5))
    images = [
        {"bytes": None, "path": "there.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": None},
        {"bytes": encode(6)[:-26], "path": None},
    ]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    dataset = open_images(tmp_path / "x.parquet")
    assert number_of(dataset.sample(0).image) == 5
    for i, reason in ((1, "No such file"), (2, "neither bytes nor a path"), (3, "truncated")):
        with pytest.raises(BadImage, match=f"x.parquet#{i}.*({reason})"):
            dataset.sample(i)


def test_a_damaged_row_group_is_bad_and_leaves_the_others(tmp_path, write_shard, number_of):
    path = write_shard(tmp_path / "x.parquet", range(12))
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    damaged = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    damaged[start : start + 16] = b"\xff" * 16
    path.write_bytes(damaged)
    dataset = open_images(path)
    for i in range(12):
        if 4 <= i < 8:
            with pytest.raises(BadImage, match=rf"x.parquet#{i}.*row group cannot be read"):
                dataset.sample(i)
        else:
            assert number_of(dataset.sample(i).image) == i


def test_what_is_not_an_image_parquet_is_refused(tmp_path, write_shard):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"torn.parquet is not a readable parquet file"):
        open_images(tmp_path / "torn.parquet")
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "table.parquet")
    with pytest.raises(DataError, match="has columns a, b; expected one that holds images"):
        open_images(tmp_path / "table.parquet")
    other = {**FEATURES, "label": {"names": ["only"], "_type": "ClassLabel"}}
    write_shard(tmp_path / "mixed/0.parquet", [0])
    write_shard(tmp_path / "mixed/1.parquet", [0], other)
    with pytest.raises(DataError, match=r"1.parquet has columns .*only.*expected those of .*0.parquet"):
        open_images(tmp_path / "mixed")
    write_shard(tmp_path / "outside.parquet", [2], other)
    with pytest.raises(DataError, match="outside.parquet has the label 2; expected"):
        open_images(tmp_path / "outside.parquet")


def test_memory_stays_within_the_budget_and_what_is_read_stays_right(tmp_path, write_shard):
    shards = [write_shard(tmp_path / f"{s}.parquet", range(s * 20, s * 20 + 20)) for s in range(3)]
    size = RowGroups(shards, "image").sizes[0]
    rows = RowGroups(shards, "image", budget=int(2.5 * size))
    assert rows.read_groups.together == 2
    for row in shuffled_order(60, 0, 0).tolist():
        assert rows[row]["path"] == f"{row}.png"
        assert sum(rows.sizes[g] for g in rows._kept) <= rows.budget
    assert RowGroups(shards, "image").read_groups is None


def test_a_grouped_order_reads_each_group_once(tmp_path, write_shard, monkeypatch):
    rows = RowGroups([write_shard(tmp_path / "x.parquet", range(40))], "image")
    rows.budget = int(2.5 * max(rows.sizes))
    order = shuffled_order(40, 0, 0, rows.read_groups)
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, g, **options: reads.append(g) or read(self, g, **options)
    )
    assert [rows[row]["path"] for row in order.tolist()] == [f"{row}.png" for row in order]
    assert sorted(reads) == list(range(10))


def test_subsets_keep_the_groups(tmp_path, write_shard):
    dataset: Any = open_images(write_shard(tmp_path / "x.parquet", range(12)))
    assert dataset.subset([1, 2]).read_groups is None
    dataset.rows.budget = 1
    assert dataset.read_groups.starts.tolist() == [0, 4, 8, 12]
    assert dataset.subset([1, 2, 9, 10, 11]).read_groups.starts.tolist() == [0, 2, 5]
    assert dataset.subset([2, 1]).read_groups is None


def test_pickling_carries_no_image(tmp_path, write_shard, number_of):
    dataset = open_images(write_shard(tmp_path / "x.parquet", range(200), rows_per_group=100))
    before = len(pickle.dumps(dataset))
    dataset.sample(0)
    assert len(pickle.dumps(dataset)) == before < 10_000
    copy = pickle.loads(pickle.dumps(dataset))
    assert number_of(copy.sample(150).image) == 150


def _fail_unless_reopened(rows, parents_files):
    assert rows[0]["path"] == "0.png"
    assert all(rows._files[shard] is not file for shard, file in parents_files.items())


def test_a_forked_process_opens_the_files_itself(tmp_path, write_shard):
    rows = RowGroups([write_shard(tmp_path / "x.parquet", range(8))], "image")
    assert rows[0]["path"] == "0.png"
    child = multiprocessing.get_context("fork").Process(target=_fail_unless_reopened, args=(rows, dict(rows._files)))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_an_empty_file_is_an_empty_dataset(tmp_path, write_shard):
    type_ = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array([], type_), "label": pa.array([], pa.int64())}), tmp_path / "x.parquet")
    dataset = open_images(tmp_path / "x.parquet")
    assert len(dataset) == 0
    assert np.array_equal(dataset.labels, [])

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsae.data import DataError, check, open_images, splits

ROWS = [("a.png", "tabby_cat"), ("deep/b.png", "boxer"), ("c.png", "tabby_cat")]
NUMBERS = {"a.png": 1, "deep/b.png": 2, "c.png": 3}


def _text(kind: str, rows: list[tuple[str, object]], column: str = "label") -> str:
    if kind == "csv":
        return f"file_name,{column}\n" + "".join(f"{name},{value}\n" for name, value in rows)
    return "".join(json.dumps({"file_name": name, column: value}) + "\n" for name, value in rows)


def _write(write_files, kind, rows=ROWS, column="label", folder="", files=NUMBERS):
    content = {f"{folder}{name}": number for name, number in files.items()}
    if kind != "parquet":
        return write_files({**content, f"{folder}metadata.{kind}": _text(kind, rows, column)})
    root = write_files(content)
    table = pa.table({"file_name": [name for name, _ in rows], column: [value for _, value in rows]})
    pq.write_table(table, root / folder / "metadata.parquet")
    return root


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_table_says_what_is_on_an_image(write_files, number_of, kind):
    dataset = open_images(_write(write_files, kind))
    assert dataset.classnames == ["boxer", "tabby cat"]
    assert dataset.labels.tolist() == [1, 0, 1]
    assert [number_of(dataset.sample(i).image) for i in range(3)] == [1, 2, 3]
    assert [dataset.ids(i) for i in range(3)] == ["a.png", "deep/b.png", "c.png"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_are_classes(write_files, kind):
    dataset = open_images(_write(write_files, kind, [("a.png", 2), ("c.png", 0)]))
    assert dataset.classnames == ["0", "1", "2"]
    assert dataset.labels.tolist() == [2, 0]
    assert dataset.notes[0].startswith("not taken: 1 image that ")


def test_splits_have_a_table_each_and_share_their_classes(write_files):
    _write(write_files, "csv", [("a.png", "dog")], folder="test/", files={"a.png": 4})
    root = _write(write_files, "csv", folder="train/")
    assert splits(root) == ["train", "test"]
    test = open_images(root, "test")
    assert test.classnames == ["boxer", "dog", "tabby cat"]
    assert (test.labels.tolist(), test.ids(0)) == ([1], "test/a.png")


def test_one_table_may_name_the_images_of_all_splits(write_files):
    rows = [("train/a.png", "x"), ("test/b.png", "y")]
    root = _write(write_files, "csv", rows, files={"train/a.png": 1, "test/b.png": 2})
    assert splits(root) == ["train", "test"]
    assert (open_images(root, "test").ids(0), open_images(root, "test").labels.tolist()) == ("test/b.png", [1])


def test_a_table_of_captions_leaves_the_classes_to_the_folders(write_files):
    rows = [("tabby_cat/a.png", "one"), ("dog/b.png", "two")]
    root = _write(write_files, "jsonl", rows, "text", files={"tabby_cat/a.png": 1, "dog/b.png": 2})
    dataset = open_images(root)
    assert dataset.classnames == ["dog", "tabby cat"]
    assert any("metadata.jsonl has no column of classes" in note for note in dataset.notes)
    flat = _write(write_files, "csv", [("a.png", "one")], "caption", "flat/", {"a.png": 1})
    assert open_images(flat / "flat").classnames is None
    assert "has no column of classes" in "\n".join(check(flat / "flat").lines())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("../secret.png", "x")], r"names '\.\./secret\.png'; expected a path below"),
        ([("gone.png", "x")], "of which 1 are missing"),
        ([("a.png", 10**15)], "has the label 1000000000000000"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_what_a_table_may_not_say(write_files, kind, rows, message):
    with pytest.raises(DataError, match=message):
        open_images(_write(write_files, kind, rows))


@pytest.mark.parametrize(
    "line", ["[1]", "{", '{"file_name": 3}', '{"file_name": "a.png", "file_name": "b.png"}', "[" * 9**5]
)
def test_a_line_that_makes_no_sense_is_named(write_files, line):
    with pytest.raises(DataError, match=r"metadata\.jsonl"):
        open_images(write_files({**NUMBERS, "metadata.jsonl": line}))

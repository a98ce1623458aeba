from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from patchsae.data import DataError, check, open_images, splits


def _labels_by_id(dataset):
    return {dataset.ids(i): dataset.classnames[dataset.labels[i]] for i in range(len(dataset))}


def test_class_folders(write_files, number_of):
    files = {"cat/1.png": 1, "cat/2.PNG": 2, "dog/3.png": 3, "cat/notes.txt": "no image", ".git/x.png": 9, "readme": ""}
    root = write_files(files)
    dataset = open_images(root)
    assert dataset.classnames == ["cat", "dog"]
    assert _labels_by_id(dataset) == {"cat/1.png": "cat", "cat/2.PNG": "cat", "dog/3.png": "dog"}
    for i in range(3):
        sample = dataset.sample(i)
        assert sample.id == dataset.ids(i)
        assert sample.label == dataset.labels[i]
        assert number_of(sample.image) == files[sample.id]
    assert splits(root) == []


def test_positions_outside_are_index_errors(write_files):
    dataset = open_images(write_files({"a/1.png": 1, "b/2.png": 2}))
    for i in (2, -1):
        with pytest.raises(IndexError):
            dataset.sample(i)


def test_labels_agree_between_splits_that_miss_classes(write_files):
    root = write_files(
        {"train/a/1.png": 1, "train/b/2.png": 2, "train/c/3.png": 3, "val/c/4.png": 4, "test/b/5.png": 5}
    )
    assert splits(root) == ["train", "val", "test"]
    for split, expected in (("train", [0, 1, 2]), ("val", [2]), ("test", [1])):
        dataset = open_images(root, split)
        assert dataset.classnames == ["a", "b", "c"]
        assert dataset.labels.tolist() == expected
        assert dataset.name == f"root:{split}"


def test_a_split_of_loose_images_has_no_labels(write_files):
    root = write_files({"train/a/1.png": 1, "train/b/2.png": 2, "val/x.png": 3})
    dataset = open_images(root, "val")
    assert (dataset.classnames, dataset.labels.tolist(), dataset.ids(0)) == (None, [-1], "val/x.png")


def test_a_class_may_be_called_train(write_files):
    dataset = open_images(write_files({"bus/1.png": 1, "train/2.png": 2}))
    assert dataset.classnames == ["bus", "train"]


def test_a_missing_or_unknown_split_is_named(write_files):
    root = write_files({"train/a/1.png": 1, "validation/a/2.png": 2})
    with pytest.raises(DataError, match=r"split is not given, and .* has 'train', 'validation'"):
        open_images(root)
    with pytest.raises(DataError, match=r"split is 'test'; .* has 'train', 'validation'"):
        open_images(root, "test")
    assert open_images(root, "val").ids(0) == "validation/a/2.png"
    assert open_images(f"{root}:val").ids(0) == "validation/a/2.png"
    with pytest.raises(DataError, match=r"split is 'train', but source .* names 'val'"):
        open_images(f"{root}:val", "train")


def test_a_split_where_there_are_none_is_refused(write_files):
    with pytest.raises(DataError, match=r"split is 'train', but .* has no splits"):
        open_images(write_files({"a/1.png": 1, "b/2.png": 2}), "train")


def test_empty_class_folders_are_named(write_files):
    root = write_files({"a/1.png": 1, "b/notes.txt": "x", "c/2.png": 2})
    with pytest.raises(DataError, match=r"1 of 3 class folders without images: b \(1 \.txt\); looked for \.jpg"):
        open_images(root)


@pytest.mark.parametrize(
    "files",
    [
        {"data/cat/1.png": 1, "data/dog/2.png": 2},
        {"data/train/cat/1.png": 1, "data/val/cat/2.png": 2},
        {"data/cat/1.png": 1, "more/dog/2.png": 2, "more/cat/3.png": 3},
    ],
)
def test_a_root_one_level_too_high_points_below(write_files, files):
    root = write_files(files)
    with pytest.raises(DataError, match=f"one level too high: .* such as {re.escape(str(root / 'data'))}"):
        open_images(root)


def test_classes_may_keep_their_images_in_an_inner_folder(write_files):
    dataset = open_images(write_files({"n1/images/1.png": 1, "n2/images/2.png": 2}))
    assert dataset.classnames == ["n1", "n2"]


def test_images_deeper_in_a_class_belong_to_it(write_files):
    dataset = open_images(write_files({"a/1.png": 1, "a/more/2.png": 2, "a/.thumbs/1.png": 9, "b/3.png": 3}))
    assert _labels_by_id(dataset) == {"a/1.png": "a", "a/more/2.png": "a", "b/3.png": "b"}


def test_linked_class_folders_count(write_files, tmp_path):
    root = write_files({"a/1.png": 1, "b/2.png": 2})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a").symlink_to(root / "a")
    assert open_images(tmp_path / "linked").classnames == ["a"]


def test_a_plain_folder_has_no_labels(write_files, number_of):
    dataset = open_images(write_files({"2.png": 2, "1.png": 1, "x.txt": "x"}))
    assert dataset.classnames is None
    assert dataset.labels.tolist() == [-1, -1]
    assert [(s.id, number_of(s.image), s.label) for s in map(dataset.sample, range(2))] == [
        ("1.png", 1, -1),
        ("2.png", 2, -1),
    ]


def test_imagenet_codes_get_their_names_and_repeated_names_stay_apart(write_files):
    root = write_files(
        {
            "classnames.txt": "n02 missile\nn01 great white shark\nn03 missile\n",
            "images/train/n01/1.png": 1,
            "images/train/n02/2.png": 2,
            "images/train/n03/3.png": 3,
            "images/val/n03/4.png": 4,
        }
    )
    assert splits(root) == ["train", "val"]
    assert open_images(root, "train").classnames == ["great white shark", "missile", "missile"]
    assert open_images(root, "val").labels.tolist() == [2]


def test_imagenet_folders_without_a_name_are_refused(write_files):
    root = write_files({"classnames.txt": "n01 shark\n", "n01/1.png": 1, "n02/2.png": 2})
    with pytest.raises(DataError, match=r"no line for 1 class folders: n02"):
        open_images(root)


@pytest.mark.parametrize("split", ["", "train/"])
def test_folders_give_names_as_prompts_say_them(write_files, split):
    root = write_files({f"{split}great_white_shark/1.png": 1, f"{split}_/2.png": 2})
    assert open_images(root).classnames == ["_", "great white shark"]


@pytest.mark.parametrize("name", ["1.jfif", "2.jpe", "3.avif", "4.jp2", "5.JPEG", "6", "7f3a", "8.tga"])
def test_every_file_that_is_an_image_is_taken(write_files, tmp_path, name):
    kind = {"avif": "AVIF", "jp2": "JPEG2000", "tga": "TGA"}.get(name.partition(".")[2], "JPEG")
    root = write_files({"cat/0.png": 0})
    Image.new("RGB", (16, 16), "red").save(root / "cat" / name, kind)
    dataset = open_images(root)
    assert sorted(dataset.ids(i) for i in range(len(dataset))) == sorted(["cat/0.png", f"cat/{name}"])
    assert dataset.sample([dataset.ids(i) for i in range(2)].index(f"cat/{name}")).image.size == (16, 16)
    assert dataset.notes == ()


def test_what_is_no_image_is_counted_by_kind_in_one_line(write_files):
    root = write_files({"a/1.png": 1, "a/x.heic": "", "a/y.HEIC": "", "a/noext": "text", "a/.hidden": "", "b/2.png": 2})
    assert open_images(root).notes == ("not taken for images in the class folders: 2 .heic, 1 without extension",)


@pytest.mark.parametrize("lines", ["great white shark\ntabby cat\n", "great white shark\ntabby\n"])
def test_a_list_of_class_names_beside_the_splits_makes_no_imagenet(write_files, lines):
    folders = {f"{split}/{name}/1.png": 1 for split in ("train", "test") for name in ("great_white_shark", "tabby_cat")}
    root = write_files({**folders, "classnames.txt": lines})
    assert splits(root) == ["train", "test"]
    dataset = open_images(root, "test")
    assert dataset.classnames == ["great white shark", "tabby cat"]
    assert len(dataset.notes) == ("cat" not in lines)


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"a\nb\tc", b"'\",;", b"-x", "猫".encode(), b"e" * 200, "\u202ertl".encode()]
)
def test_any_name_of_a_file_system_works_and_can_be_written(write_files, encode, name):
    root = write_files({"dog/1.png": 1})
    folder = os.fsencode(root) + b"/" + name
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/" + name + b".png")).write_bytes(encode(2))
    dataset = open_images(root)
    id = next(dataset.ids(i) for i in range(2) if dataset.ids(i) != "dog/1.png")
    for text in (id, *dataset.classnames, dataset.fingerprint, *check(root).lines()):
        text.encode()
        assert not set(text) & set("\n\t\r\0")
    assert {dataset.sample(i).id for i in range(2)} == {"dog/1.png", id}

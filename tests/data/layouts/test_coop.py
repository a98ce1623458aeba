from __future__ import annotations

import json
import re
import tracemalloc

import pytest

from patchsae.data import DataError, open_images, splits
from patchsae.models.prompts import templates_for

TRAIN = [["cat/1.png", 1, "tabby"], ["dog/2.png", 0, "terrier"]]
TEST = [["cat/3.png", 1, "tabby"], ["bird/4.png", 2, "terrier"]]
FILES = {"cat/1.png": 1, "dog/2.png": 2, "cat/3.png": 3, "bird/4.png": 4}


def _dataset(write_files, folder, entries=None):
    entries = entries or {"train": TRAIN, "val": [], "test": TEST}
    files = {f"{folder}{name}": number for name, number in FILES.items()}
    return write_files({**files, "split_zhou_Pets.json": json.dumps(entries)})


@pytest.mark.parametrize("folder", ["", "images/", "images/jpg/"])
def test_paths_are_found_in_the_dataset_or_its_image_folder(write_files, number_of, folder):
    root = _dataset(write_files, folder)
    assert splits(root) == ["train", "val", "test"]
    for split, entries in (("train", TRAIN), ("test", TEST)):
        dataset = open_images(root, split)
        assert dataset.classnames == ["terrier", "tabby", "terrier"]
        for i, (path, label, _) in enumerate(entries):
            sample = dataset.sample(i)
            assert (sample.id, sample.label, dataset.labels[i]) == (path, label, label)
            assert number_of(sample.image) == FILES[path]
    assert len(open_images(root, "val")) == 0


def test_the_file_itself_is_a_source(write_files):
    root = _dataset(write_files, "images/")
    assert open_images(root / "split_zhou_Pets.json", "test").ids(1) == "bird/4.png"


def test_missing_images_are_counted_and_the_first_is_named(write_files):
    root = _dataset(write_files, "images/")
    (root / "images/dog/2.png").unlink()
    where = re.escape(str(root / "images/dog/2.png"))
    with pytest.raises(DataError, match=f"lists 2 images, of which 1 are missing: the first, 'dog/2.png', .* {where}"):
        open_images(root, "train")
    assert len(open_images(root, "test")) == 2


def test_no_images_at_all_is_an_error_that_says_where_it_looked_and_where_they_belong(write_files):
    root = write_files({"other/x.png": 1, "split_zhou_OxfordFlowers.json": json.dumps({"train": TRAIN})})
    belongs = re.escape(str(root / "jpg/cat/1.png"))
    with pytest.raises(DataError, match=rf"'cat/1\.png', no such file below .*other; expected {belongs}"):
        open_images(root)


def test_names_are_as_prompts_say_them_and_the_dataset_is_called_as_its_split_file(write_files):
    entries = {"train": [["cat/1.png", 0, "american_bulldog"]], "test": []}
    dataset = open_images(write_files({**FILES, "split_zhou_OxfordPets.json": json.dumps(entries)}), "train")
    assert (dataset.name, dataset.classnames) == ("OxfordPets:train", ["american bulldog"])
    assert templates_for(dataset.name) == ["a photo of a {}, a type of pet."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [["cat/1.png", 0, "a"], ["cat/3.png", 0, "b"]]}, "label 0 both 'a' and 'b'"),
        (
            {"train": [["cat/1.png", 0, "a"], ["cat/3.png", 2, "b"]]},
            r"split_zhou_Pets.json: the label of 'cat/3.png' is 2; expected 0 .. 1",
        ),
        ({"train": [["cat/1.png", "0", "a"]]}, r"\['cat/1.png', '0', 'a'\] in 'train'; expected \[path"),
        ([1, 2], "holds a list; expected an object"),
        ({}, "has no splits"),
    ],
)
def test_split_files_that_make_no_sense_are_refused(write_files, content, message):
    root = write_files({**FILES, "split_zhou_Pets.json": json.dumps(content)})
    with pytest.raises(DataError, match=message):
        open_images(root)


def test_two_split_files_and_broken_json_are_refused(write_files):
    root = write_files({"split_zhou_A.json": "{}", "split_zhou_B.json": "{"})
    with pytest.raises(DataError, match=r"2 split files \(split_zhou_A.json, split_zhou_B.json\)"):
        open_images(root)
    with pytest.raises(DataError, match="is not JSON"):
        open_images(root / "split_zhou_B.json")


AIRCRAFT = {
    "variants.txt": "A300\nBoeing 717\n",
    "images_variant_train.txt": "01 Boeing 717\n02 A300\n",
    "images_variant_trainval.txt": "01 Boeing 717\n02 A300\n03 A300\n",
    "images_variant_val.txt": "03 A300\n",
    "images/01.jpg": 1,
    "images/02.jpg": 2,
    "images/03.jpg": 3,
}


def test_aircraft_has_lists_of_its_own(write_files, number_of):
    root = write_files(AIRCRAFT)
    assert splits(root) == ["train", "val"]
    train = open_images(root, "train")
    assert train.classnames == ["A300", "Boeing 717"]
    samples = [train.sample(i) for i in range(2)]
    assert [(s.id, s.label, number_of(s.image)) for s in samples] == [("images/01.jpg", 1, 1), ("images/02.jpg", 0, 2)]


def test_aircraft_lists_with_unknown_variants_are_refused(write_files):
    root = write_files({**AIRCRAFT, "images_variant_val.txt": "03 Airbus\n"})
    with pytest.raises(DataError, match="line 1 is '03 Airbus'; expected IMAGE VARIANT"):
        open_images(root, "val")


@pytest.mark.parametrize("label", [10**18, -1, True, 0.0, "0", None])
def test_labels_are_no_more_than_there_are_images(write_files, label):
    root = _dataset(write_files, "", {"train": [["cat/1.png", label, "tabby"]], "test": []})
    tracemalloc.start()
    with pytest.raises(DataError, match="split_zhou_Pets.json"):
        open_images(root, "train")
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        '{"train": [], "train": [["cat/1.png", 0, "a"]]}',
        '{"train": [["cat/1.png", NaN, "a"]]}',
        '{"train": ' + "[" * 10**5,
    ],
)
def test_json_that_nobody_writes_is_refused_by_name(write_files, text):
    with pytest.raises(DataError, match="split_zhou_Pets.json is not JSON"):
        open_images(write_files({**FILES, "split_zhou_Pets.json": text}), "train")

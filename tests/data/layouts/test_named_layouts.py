"""The datasets of the paper as their authors publish them and torchvision leaves them, in miniature."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from patchsae.data import DataError, check, open_images, splits
from patchsae.data.layout import choose_split
from patchsae.data.open import find_layout
from patchsae.models.prompts import templates_for
from tests.data.mat_files import mat_file

PETS = {
    "annotations/trainval.txt": "Abyssinian_2 1 1 1\namerican_bulldog_7 2 2 1\n",
    "annotations/test.txt": "american_bulldog_9 2 2 1\n",
    "images/Abyssinian_2.jpg": 1,
    "images/american_bulldog_7.jpg": 2,
    "images/american_bulldog_9.jpg": 3,
}
FLOWERS = {
    "imagelabels.mat": mat_file({"labels": np.array([[2, 1, 2, 1]], np.uint8)}),
    "setid.mat": mat_file(
        {
            "trnid": np.array([[3, 2]], np.uint16),
            "valid": np.array([[1]], np.uint16),
            "tstid": np.array([[4]], np.uint16),
        }
    ),
    "jpg/image_00001.jpg": 1,
    "jpg/image_00002.jpg": 2,
    "jpg/image_00003.jpg": 3,
    "jpg/image_00004.jpg": 4,
}
FOOD = {
    "meta/train.txt": "beef_tartare/11\napple_pie/5\n",
    "meta/test.txt": "apple_pie/6\n",
    "images/beef_tartare/11.jpg": 1,
    "images/apple_pie/5.jpg": 2,
    "images/apple_pie/6.jpg": 3,
}
CARS = {
    "devkit/cars_meta.mat": mat_file({"class_names": ["Acura TL Sedan 2012", "smart fortwo Convertible 2011"]}),
    "devkit/cars_train_annos.mat": mat_file(
        {"annotations": {"class": [np.array([[2]], np.uint8), np.array([[1]], np.uint8)], "fname": ["1.jpg", "2.jpg"]}}
    ),
    "cars_test_annos_withlabels.mat": mat_file(
        {"annotations": {"class": [np.array([[1]], np.uint8)], "fname": ["1.jpg"]}}
    ),
    "cars_train/1.jpg": 1,
    "cars_train/2.jpg": 2,
    "cars_test/1.jpg": 3,
}
DTD = {
    "labels/train1.txt": "zigzagged/z_1.jpg\nbanded/b_1.jpg\n",
    "labels/val1.txt": "banded/b_2.jpg\n",
    "labels/test1.txt": "polka-dotted/p_1.jpg\n",
    "labels/train2.txt": "banded/b_2.jpg\n",
    "images/zigzagged/z_1.jpg": 1,
    "images/banded/b_1.jpg": 2,
    "images/banded/b_2.jpg": 3,
    "images/polka-dotted/p_1.jpg": 4,
}
SUN = {
    "ClassName.txt": "/a/abbey\n/a/apartment_building/outdoor\n/y/yard\n",
    "Training_01.txt": "/a/apartment_building/outdoor/sun_2.jpg\n/a/abbey/sun_1.jpg\n",
    "Testing_01.txt": "/y/yard/sun_3.jpg\n",
    "SUN397/a/abbey/sun_1.jpg": 1,
    "SUN397/a/apartment_building/outdoor/sun_2.jpg": 2,
    "SUN397/y/yard/sun_3.jpg": 3,
}
UCF = {
    "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\n2 YoYo\n",
    "ucfTrainTestlist/trainlist01.txt": "YoYo/v_YoYo_g08_c01.avi 2\nApplyEyeMakeup/v_A_g08_c01.avi 1\n",
    "ucfTrainTestlist/testlist01.txt": "YoYo/v_YoYo_g01_c01.avi\n",
    "UCF-101-midframes/Yo_Yo/v_YoYo_g08_c01.jpg": 1,
    "UCF-101-midframes/Apply_Eye_Makeup/v_A_g08_c01.jpg": 2,
    "UCF-101-midframes/Yo_Yo/v_YoYo_g01_c01.jpg": 3,
}
AIRCRAFT = {
    "variants.txt": "A300\nBoeing 717\n",
    "images_variant_train.txt": "01 Boeing 717\n02 A300\n",
    "images_variant_val.txt": "03 A300\n",
    "images_variant_test.txt": "04 Boeing 717\n",
    "images_variant_trainval.txt": "01 Boeing 717\n02 A300\n03 A300\n",
    "images/01.jpg": 1,
    "images/02.jpg": 2,
    "images/03.jpg": 3,
    "images/04.jpg": 4,
}
EUROSAT = {
    "2750/AnnualCrop/1.jpg": 0,
    "2750/Forest/1.jpg": 1,
    "2750/HerbaceousVegetation/1.jpg": 2,
    "2750/Highway/1.jpg": 3,
    "2750/Industrial/1.jpg": 4,
    "2750/Pasture/1.jpg": 5,
    "2750/PermanentCrop/1.jpg": 6,
    "2750/Residential/1.jpg": 7,
    "2750/River/1.jpg": 8,
    "2750/SeaLake/1.jpg": 9,
}
CALTECH = {
    "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": 0,
    "101_ObjectCategories/Faces/image_0001.jpg": 1,
    "101_ObjectCategories/Faces_easy/image_0001.jpg": 2,
    "101_ObjectCategories/Leopards/image_0001.jpg": 3,
    "101_ObjectCategories/airplanes/image_0001.jpg": 4,
    "101_ObjectCategories/sea_horse/image_0001.jpg": 5,
}

# files, name, class names, {split: numbers of its images in order}, template
DATASETS: dict[str, Any] = {
    "pets": (PETS, "OxfordPets", ["abyssinian", "american bulldog"], {"trainval": [1, 2], "test": [3]}, "pet"),
    "flowers": (
        {**FLOWERS, "cat_to_name.json": json.dumps({"2": "hard-leaved pocket orchid", "1": "pink primrose"})},
        "OxfordFlowers",
        ["pink primrose", "hard-leaved pocket orchid"],
        {"train": [3, 2], "val": [1], "test": [4]},
        "flower",
    ),
    "food": (FOOD, "Food101", ["apple pie", "beef tartare"], {"train": [1, 2], "test": [3]}, "food"),
    "cars": (
        CARS,
        "StanfordCars",
        ["2012 Acura TL Sedan", "2011 smart fortwo Convertible"],
        {"train": [1, 2], "test": [3]},
        "a photo of a",
    ),
    "dtd": (
        DTD,
        "DescribableTextures",
        ["banded", "polka-dotted", "zigzagged"],
        {"train": [1, 2], "val": [3], "test": [4]},
        "texture",
    ),
    "sun": (
        SUN,
        "SUN397",
        ["abbey", "outdoor apartment building", "yard"],
        {"train": [2, 1], "test": [3]},
        "a photo of a",
    ),
    "ucf": (UCF, "UCF101", ["Apply Eye Makeup", "Yo Yo"], {"train": [1, 2], "test": [3]}, "a person doing"),
    "aircraft": (
        AIRCRAFT,
        "FGVCAircraft",
        ["A300", "Boeing 717"],
        {"train": [1, 2], "val": [3], "test": [4]},
        "aircraft",
    ),
    "eurosat": (
        EUROSAT,
        "EuroSAT",
        [
            "Annual Crop Land",
            "Forest",
            "Herbaceous Vegetation Land",
            "Highway or Road",
            "Industrial Buildings",
            "Pasture Land",
            "Permanent Crop Land",
            "Residential Buildings",
            "River",
            "Sea or Lake",
        ],
        {None: list(range(10))},
        "satellite",
    ),
    "caltech": (
        CALTECH,
        "Caltech101",
        ["face", "leopard", "airplane", "sea horse"],
        {None: [1, 3, 4, 5]},
        "a photo of a",
    ),
}
LABELS = {
    "pets": [0, 1, 1],
    "flowers": [1, 0, 1, 0],
    "food": [1, 0, 0],
    "cars": [1, 0, 0],
    "dtd": [2, 0, 0, 1],
    "sun": [1, 0, 2],
    "ucf": [1, 0, 1],
    "aircraft": [1, 0, 0, 1],
    "eurosat": list(range(10)),
    "caltech": [0, 1, 2, 3],
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_opens_with_its_splits_labels_and_names(write_files, number_of, name):
    files, dataset_name, classnames, by_split, template = DATASETS[name]
    root = write_files(files)
    assert splits(root) == [split for split in by_split if split]
    labels = []
    for split, numbers in by_split.items():
        dataset = open_images(root, split)
        assert dataset.name == (f"{dataset_name}:{split}" if split else dataset_name)
        assert dataset.classnames == classnames
        assert [number_of(dataset.sample(i).image) for i in range(len(dataset))] == numbers
        assert [dataset.sample(i).label for i in range(len(dataset))] == dataset.labels.tolist()
        assert template in templates_for(dataset.name)[0]
        labels += dataset.labels.tolist()
    assert labels == LABELS[name]
    report = check(root)
    assert report.ok
    assert report.layout == find_layout(str(root)).name


@pytest.mark.parametrize("name", DATASETS)
def test_a_split_file_of_coop_counts_before_the_lists(write_files, name):
    files, *_ = DATASETS[name]
    image = next(path for path in files if path.endswith(".jpg"))
    entries = {"train": [[image, 0, "its own name"]], "val": [], "test": []}
    root = write_files({**files, "split_zhou_Own.json": json.dumps(entries)})
    assert open_images(root, "train").classnames == ["its own name"]


@pytest.mark.parametrize(("name", "above"), [(name, above) for name in DATASETS for above in ("data", "data/inner")])
def test_a_root_too_high_names_the_folder_to_give(write_files, name, above):
    files, dataset_name, *_ = DATASETS[name]
    root = write_files({f"{above}/{path}": content for path, content in files.items()})
    where = re.escape(str(root / above))
    for act in (open_images, check):
        with pytest.raises(DataError, match=rf"one or two levels too high; expected\n  - {where}: {dataset_name}"):
            act(root)


def test_a_folder_of_many_datasets_lists_them(write_files):
    loose = {"x/1.png": 1}
    parts: dict[str, dict[str, Any]] = {
        "oxford-iiit-pet": PETS,
        "dtd/dtd": DTD,
        "fgvc-aircraft-2013b/data": AIRCRAFT,
        "loose": loose,
    }
    root = write_files({f"{folder}/{path}": c for folder, files in parts.items() for path, c in files.items()})
    with pytest.raises(DataError) as error:
        open_images(root)
    assert [line.split(": ")[0] for line in str(error.value).splitlines()[1:]] == [
        f"  - {root / folder}" for folder in ("dtd/dtd", "fgvc-aircraft-2013b/data", "oxford-iiit-pet")
    ]


@pytest.mark.parametrize(
    ("name", "split", "image"),
    [
        ("pets", "test", "images/american_bulldog_9.jpg"),
        ("flowers", "train", "jpg/image_00002.jpg"),
        ("food", "test", "images/apple_pie/6.jpg"),
        ("cars", "test", "cars_test/1.jpg"),
        ("dtd", "val", "images/banded/b_2.jpg"),
        ("sun", "test", "SUN397/y/yard/sun_3.jpg"),
        ("ucf", "test", "UCF-101-midframes/Yo_Yo/v_YoYo_g01_c01.jpg"),
        ("aircraft", "val", "images/03.jpg"),
    ],
)
def test_listed_images_that_are_missing_stop_their_split_and_the_rest_is_described(write_files, name, split, image):
    files, _, _, by_split, _ = DATASETS[name]
    root = write_files(files)
    (root / image).unlink()
    message = f"of which 1 are missing: the first, {image!r}, was looked for at {root / image}"
    with pytest.raises(DataError, match=re.escape(message)):
        open_images(root, split)
    report = check(root)
    assert {part.split: part.images for part in report.splits} == {
        other: len(expected) - (other == split) for other, expected in by_split.items()
    }
    assert not report.ok
    assert message in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("name", "split", "gone", "message"),
    [
        ("pets", "test", "annotations/trainval.txt", "annotations lacks trainval.txt (a list of images"),
        ("flowers", "val", "setid.mat", "lacks setid.mat (the numbers of the images of each split)"),
        ("flowers", "val", "imagelabels.mat", "lacks imagelabels.mat (the class of every image)"),
        ("food", "test", "meta/train.txt", "meta lacks train.txt"),
        ("cars", "train", "devkit/cars_meta.mat", "devkit lacks cars_meta.mat (the class names"),
        ("cars", "test", "cars_test_annos_withlabels.mat", "lacks cars_test_annos_withlabels.mat (the annotations"),
        ("dtd", "train", "labels/val1.txt", "labels lacks val1.txt"),
        ("ucf", "train", "ucfTrainTestlist/classInd.txt", "ucfTrainTestlist lacks classInd.txt (the names of"),
        ("ucf", "train", "UCF-101-midframes/", "lacks UCF-101-midframes (the middle frame"),
        ("ucf", "train", "ucfTrainTestlist/", "lacks ucfTrainTestlist (the lists of the videos; or split_zhou_UCF101"),
    ],
)
def test_a_missing_list_is_named_with_its_place(write_files, name, split, gone, message):
    files = {path: content for path, content in DATASETS[name][0].items() if not path.startswith(gone)}
    root = write_files(files)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        open_images(root, split)
    assert f"expected {root / gone}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "split", "wrong", "message"),
    [
        ("pets", "test", {"annotations/test.txt": "Abyssinian 1\n"}, "line 1 is 'Abyssinian 1'; expected BREED_NUMBER"),
        ("pets", "test", {"annotations/test.txt": "pug_1 9 2 1\n"}, "classes 1 .. 9 with gaps"),
        (
            "flowers",
            "val",
            {"setid.mat": mat_file({"valid": np.array([[9]], np.uint8)})},
            "setid.mat: the number of an image is 9; expected 1 .. 4",
        ),
        ("flowers", "val", {"setid.mat": mat_file({"x": np.ones((1, 1))})}, "holds x; expected a variable 'valid'"),
        ("flowers", "val", {"cat_to_name.json": '{"1": "a"}'}, "no name for class 2"),
        ("flowers", "val", {"cat_to_name.json": "a"}, "cat_to_name.json is not JSON"),
        ("food", "test", {"meta/test.txt": "apple_pie\n"}, "lists 'apple_pie'; expected CLASS/IMAGE"),
        ("dtd", "test", {"labels/val1.txt": "b.jpg\n"}, "lists 'b.jpg'; expected CLASS/IMAGE.jpg"),
        ("sun", "test", {"Testing_01.txt": "/z/zoo/sun_1.jpg\n"}, "lists 'z/zoo/sun_1.jpg'; expected .* a/abbey"),
        ("ucf", "test", {"ucfTrainTestlist/testlist01.txt": "Yo/v.avi\n"}, "line 1 is 'Yo/v.avi'"),
        (
            "cars",
            "test",
            {"cars_test_annos_withlabels.mat": mat_file({"annotations": {"fname": ["1.jpg"]}})},
            "images with fname; expected fname and class",
        ),
        (
            "cars",
            "test",
            {
                "cars_test_annos_withlabels.mat": mat_file(
                    {"annotations": {"fname": ["1.jpg"], "class": [np.array([[3]], np.uint8)]}}
                )
            },
            "the class of 1.jpg is 3; expected 1 .. 2",
        ),
    ],
)
def test_lists_that_make_no_sense_are_refused(write_files, name, split, wrong, message):
    root = write_files({**DATASETS[name][0], **wrong})
    with pytest.raises(DataError, match=message):
        open_images(root, split)


def test_train_finds_trainval_where_there_is_no_other(write_files):
    assert open_images(write_files(PETS), "train").name == "OxfordPets:trainval"
    both = ["train", "trainval", "test"]
    assert [choose_split(split, both, "x") for split in both] == both


def test_food_without_text_lists_has_them_in_json(write_files):
    lists = {"beef_tartare": ["beef_tartare/11"], "apple_pie": ["apple_pie/5"]}
    files = {path: content for path, content in FOOD.items() if path != "meta/train.txt"}
    dataset = open_images(write_files({**files, "meta/train.json": json.dumps(lists)}), "train")
    assert [dataset.ids(i) for i in range(2)] == ["images/beef_tartare/11.jpg", "images/apple_pie/5.jpg"]
    assert dataset.labels.tolist() == [1, 0]


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', '{"a": [1]}', "{"])
def test_json_lists_of_another_kind_are_refused(write_files, content):
    files = {path: text for path, text in FOOD.items() if path != "meta/train.txt"}
    with pytest.raises(DataError, match=r"train\.json (is not JSON|holds)"):
        open_images(write_files({**files, "meta/train.json": content}), "train")


def test_flowers_have_torchvisions_names_where_there_are_no_others(write_files):
    assert open_images(write_files(FLOWERS), "test").classnames[:2] == ["pink primrose", "hard-leaved pocket orchid"]


def test_sun397_without_partitions_is_one_piece(write_files):
    files = {path.removeprefix("SUN397/"): c for path, c in SUN.items() if not path.endswith("_01.txt")}
    root = write_files(files)
    dataset = open_images(root)
    assert splits(root) == []
    assert [dataset.ids(i) for i in range(3)] == [path for path in files if path.endswith(".jpg")]
    assert dataset.labels.tolist() == [0, 1, 2]


def test_eurosat_without_one_of_its_classes_says_which(write_files):
    files = {path: number for path, number in EUROSAT.items() if "/River/" not in path}
    with pytest.raises(DataError, match="lacks 1 of EuroSAT's 10 class folders: River"):
        open_images(write_files(files))


def test_class_folders_open_alike_from_above_and_from_themselves(write_files):
    files = {f"{name}/{path}": c for name, part in (("e", EUROSAT), ("c", CALTECH)) for path, c in part.items()}
    root = write_files(files)
    for above, inside in (("e", "2750"), ("c", "101_ObjectCategories")):
        assert open_images(root / above / inside).fingerprint == open_images(root / above).fingerprint


@pytest.mark.parametrize("folder", ["images", "jpg"])
def test_images_without_their_lists_are_no_class(write_files, folder):
    root = write_files({f"{folder}/1.png": 1, f"{folder}/2.png": 2})
    with pytest.raises(DataError, match=f"holds the folder {folder} and nothing that says what is on its images"):
        open_images(root)
    assert open_images(root / folder).labels.tolist() == [-1, -1]

from __future__ import annotations

import pytest
import torch

from patchsae.data import DataError, check, open_images, splits
from patchsae.data.imagenet_codes import names_by_code, val_number
from tests.data.mat_files import mat_file

TENCH, SHARK, MISSILE, PROJECTILE = "n01440764", "n01484850", "n03773504", "n04008634"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def test_the_codes_are_sorted_and_have_openais_names():
    names = names_by_code()
    assert list(names) == sorted(names)
    assert len(names) == 1000
    assert (names[TENCH], names[SHARK]) == ("tench", "great white shark")
    assert names[MISSILE] == names[PROJECTILE] == "missile"


@pytest.mark.parametrize("inner", ["", "images/"])
def test_class_folders_by_code_have_names_without_a_list_of_them(write_files, inner):
    files = {f"train/{TENCH}/1.JPEG": 1, f"train/{SHARK}/2.JPEG": 2, f"val/{SHARK}/3.JPEG": 3}
    root = write_files({inner + path: number for path, number in files.items()})
    assert splits(root) == ["train", "val"]
    assert open_images(root, "train").classnames == ["tench", "great white shark"]
    assert open_images(root, "val").labels.tolist() == [1]
    assert check(root).layout == "ImageNet"


@pytest.mark.parametrize("folder", ["imagenet-a", "imagenet-r", "sketch", "images"])
@pytest.mark.parametrize("listed", [False, True])
def test_variants_have_the_classes_that_have_a_folder(write_files, folder, listed):
    names = {"classnames.txt": f"{TENCH} a tench\n{SHARK} a shark\n{MISSILE} a missile\n"} if listed else {}
    root = write_files(
        {**names, f"{folder}/{MISSILE}/1.jpg": 1, f"{folder}/{TENCH}/2.jpg": 2, f"{folder}/README.txt": ""}
    )
    expected = ["a tench", "a missile"] if listed else ["tench", "missile"]
    for source in (root, root / folder):
        dataset = open_images(source)
        assert dataset.classnames == expected
        assert dataset.labels.tolist() == [0, 1]
        assert dataset.ids(0) == f"{TENCH}/2.jpg"


@pytest.mark.parametrize("listed", [False, True])
def test_imagenet_v2_calls_its_folders_by_label(write_files, listed):
    names = names_by_code()
    folder = "imagenetv2-matched-frequency-format-val"
    files = {f"{folder}/{label}/x.jpeg": label for label in (0, 2, 10, 999)}
    text = "".join(f"{code} my {name}\n" for code, name in names.items())
    root = write_files({**files, "classnames.txt": text} if listed else files)
    for source in (root, root / folder):
        dataset = open_images(source)
        assert sorted(dataset.labels.tolist()) == [0, 2, 10, 999]
        assert dataset.labels.tolist() == [int(dataset.ids(i).split("/")[0]) for i in range(4)]
        assert dataset.classnames == [("my " if listed else "") + name for name in names.values()]


def test_of_several_imagenet_v2_one_must_be_named(write_files):
    root = write_files(
        {f"imagenetv2-{kind}/{label}/x.jpeg": 1 for kind in ("top-images", "threshold") for label in "01"}
    )
    with pytest.raises(DataError, match="too high; expected\n  - .*imagenetv2-threshold: ImageNet\n  - .*top-images"):
        open_images(root)


def test_folders_of_other_codes_are_ordinary_classes(write_files):
    root = write_files({f"{TENCH}/1.png": 1, "n99999999/2.png": 2})
    assert open_images(root).classnames == [TENCH, "n99999999"]


def _devkit():
    synsets = {"ILSVRC2012_ID": [_number(1), _number(2)], "WNID": [SHARK, TENCH], "words": ["shark", "tench, Tinca"]}
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": mat_file({"synsets": synsets}),
        f"ILSVRC2012_devkit_t12/data/{TRUTH}": "1\n2\n2\n",
    }


def _number(value):
    return torch.tensor([[value]], dtype=torch.uint8).numpy()


VAL = {f"val/ILSVRC2012_val_{number:08d}.JPEG": number for number in (1, 2, 3)}
TRAIN = {f"train/{TENCH}/1.JPEG": 1, f"train/{SHARK}/2.JPEG": 2}


@pytest.mark.parametrize("train", [{}, TRAIN])
def test_validation_images_as_shipped_get_their_labels_from_the_devkit(write_files, number_of, train):
    root = write_files({**_devkit(), **VAL, **train})
    dataset = open_images(root, "val")
    assert dataset.classnames == ["tench", "great white shark"]
    assert dataset.labels.tolist() == [1, 0, 0]
    assert [number_of(dataset.sample(i).image) for i in range(3)] == [1, 2, 3]
    assert splits(root) == (["train", "val"] if train else ["val"])


def test_torchvisions_meta_file_gives_them_too(write_files, tmp_path):
    root = write_files({**VAL, **TRAIN})
    torch.save(({TENCH: ("tench", "Tinca tinca")}, [SHARK, TENCH, TENCH]), root / "meta.bin")
    assert open_images(root, "val").labels.tolist() == [1, 0, 0]
    torch.save([SHARK], root / "meta.bin")
    with pytest.raises(DataError, match=r"meta\.bin is not torchvision's"):
        open_images(root, "val")
    (root / "meta.bin").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"meta\.bin"):
        open_images(root, "val")


def test_without_a_devkit_loose_images_have_no_labels(write_files):
    dataset = open_images(write_files({**VAL, **TRAIN}), "val")
    assert (dataset.classnames, dataset.labels.tolist()) == (None, [-1, -1, -1])


def test_a_devkit_that_does_not_fit_is_refused(write_files):
    root = write_files({**_devkit(), **VAL, "val/ILSVRC2012_val_00000004.JPEG": 4})
    with pytest.raises(DataError, match=r"00000004\.JPEG is not one of the devkit's .* 1 \.\. 3"):
        open_images(root, "val")
    (root / "ILSVRC2012_devkit_t12/data" / TRUTH).write_text("1\n7\n")
    with pytest.raises(DataError, match="has '7'; expected an ILSVRC2012_ID"):
        open_images(root, "val")


def test_numbers_of_validation_images():
    assert val_number("ILSVRC2012_val_00050000.JPEG") == 50000
    assert val_number("n01440764_10026.JPEG") is None

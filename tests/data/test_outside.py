"""What lies outside of a dataset's folder is read only where somebody asks for it, in every layout that names paths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsae.data import BadImage, DataError, open_images

from .mat_files import mat_file


def _coop(root: Path, named: str) -> None:
    (root / "split_zhou_Pets.json").write_text(json.dumps({"train": [[named, 0, "cat"]], "test": []}))


def _dtd(root: Path, named: str) -> None:
    (root / "labels").mkdir()
    for split in ("train", "val", "test"):
        (root / "labels" / f"{split}1.txt").write_text(f"{named}\n")


def _food(root: Path, named: str) -> None:
    (root / "meta").mkdir()
    for split in ("train", "test"):
        (root / "meta" / f"{split}.txt").write_text(named.removesuffix(".jpg"))


def _pets(root: Path, named: str) -> None:
    (root / "annotations").mkdir()
    for split in ("trainval", "test"):
        (root / "annotations" / f"{split}.txt").write_text(f"{named.removesuffix('.jpg')} 1 1 1\n")


def _aircraft(root: Path, named: str) -> None:
    (root / "variants.txt").write_text("cat\n")
    (root / "images_variant_train.txt").write_text(f"{named.removesuffix('.jpg')} cat\n")


def _sun(root: Path, named: str) -> None:
    (root / "ClassName.txt").write_text(f"{named.rpartition('/')[0]}\n")
    (root / "Training_01.txt").write_text(f"{named}\n")


def _cars(root: Path, named: str) -> None:
    (root / "devkit").mkdir()
    annotations = {"fname": [named], "class": [np.ones((1, 1), np.uint8)]}
    (root / "devkit" / "cars_meta.mat").write_bytes(mat_file({"class_names": ["cat"]}))
    (root / "devkit" / "cars_train_annos.mat").write_bytes(mat_file({"annotations": annotations}))


@pytest.mark.parametrize("make", [_coop, _dtd, _food, _pets, _aircraft, _sun, _cars])
def test_listed_paths_stay_below_the_dataset(tmp_path: Path, encode, make) -> None:
    root, secret = tmp_path / "root", tmp_path / "other" / "a_1.jpg"
    root.mkdir()
    secret.parent.mkdir()
    secret.write_bytes(encode(7))
    make(root, "../other/a_1.jpg" if make is _coop else "../../other/a_1.jpg")
    split = "trainval" if make is _pets else "train"
    with pytest.raises(DataError, match=r"names '.*a_1.jpg'; expected a path below .*root, or --outside"):
        open_images(root, split)


@pytest.mark.parametrize("named", ["../other/1.png", "ABSOLUTE"])
def test_outside_reads_them(tmp_path: Path, encode, number_of, named: str) -> None:
    root, secret = tmp_path / "root", tmp_path / "other" / "1.png"
    root.mkdir()
    secret.parent.mkdir()
    secret.write_bytes(encode(7))
    _coop(root, named.replace("ABSOLUTE", str(secret)))
    with pytest.raises(DataError, match="expected a path below"):
        open_images(root, "train")
    assert number_of(open_images(root, "train", outside=True).sample(0).image) == 7


@pytest.mark.parametrize("named", ["../other/1.png", "ABSOLUTE"])
def test_a_row_of_parquet_names_images_beside_its_shard(tmp_path: Path, encode, number_of, named: str) -> None:
    root, secret = tmp_path / "root", tmp_path / "other" / "1.png"
    for path, number in ((root / "in/1.png", 1), (secret, 7)):
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(number))
    rows = [{"bytes": None, "path": path} for path in ("in/1.png", named.replace("ABSOLUTE", str(secret)))]
    pq.write_table(pa.table({"image": rows}), root / "train.parquet")
    dataset = open_images(root / "train.parquet")
    assert number_of(dataset.sample(0).image) == 1
    with pytest.raises(BadImage, match="its row names .*expected a path below"):
        dataset.sample(1)
    assert number_of(open_images(root / "train.parquet", outside=True).sample(1).image) == 7


@pytest.mark.parametrize("named", ["../other", "ABSOLUTE"])
@pytest.mark.parametrize("file", ["dataset_dict.json", "state.json"])
def test_a_saved_dataset_has_its_files_below_it(tmp_path: Path, named: str, file: str) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": None}], "label": [0]})
    table.save_to_disk(tmp_path / "other")
    table.save_to_disk(tmp_path / "root")
    named = named.replace("ABSOLUTE", str(tmp_path / "other"))
    state = {"_data_files": [{"filename": f"{named}/data-00000-of-00001.arrow"}]}
    content = {"splits": [named]} if file == "dataset_dict.json" else state
    (tmp_path / "root" / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{file} names .*expected a path below"):
        open_images(tmp_path / "root")

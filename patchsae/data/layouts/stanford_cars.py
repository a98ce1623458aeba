"""Stanford Cars: devkit/cars_{meta,train_annos}.mat, cars_test_annos_withlabels.mat, cars_{train,test}/*.jpg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchsae.data.base import DataError
from patchsae.data.listed import Listing, listed_layout, need
from patchsae.data.matlab import number_in, read_mat
from patchsae.disk.names import written

_TEST_LABELS = "cars_test_annos_withlabels.mat"


def _matches(root: Path) -> bool:
    files = ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", _TEST_LABELS)
    return any((root / name).is_file() for name in files) or ((root / "cars_train").is_dir())


def _read(root: Path, split: str | None) -> Listing:
    file = _annotations(root, str(split))
    meta = root / "devkit" / "cars_meta.mat"
    names = _variable(meta, "class_names")
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{meta} holds class names that are no texts")
    classnames = [_year_first(written(name)) for name in names]
    images = _variable(file, "annotations")
    labels = [_label(file, image, len(classnames)) for image in images]
    return Listing(file, [f"cars_{split}/{image['fname']}" for image in images], labels, classnames)


def _annotations(root: Path, split: str) -> Path:
    if split == "train":
        return root / "devkit" / "cars_train_annos.mat"
    inside = root / "devkit" / _TEST_LABELS
    return inside if inside.is_file() else root / _TEST_LABELS


def _variable(path: Path, name: str) -> list[Any]:
    variables = read_mat(need(path, f"the {name.replace('_', ' ')} of Stanford Cars"))
    value = variables.get(name)
    if not isinstance(value, list):
        raise DataError(f"{path} holds {', '.join(variables) or 'nothing'}; expected a variable {name!r}")
    return value


def _label(file: Path, image: Any, classes: int) -> int:
    """The class from 0; in the file it counts from 1. The test list of the devkit comes without."""
    if not isinstance(image, dict) or not {"fname", "class"} <= set(image) or not isinstance(image["fname"], str):
        came = ", ".join(image) if isinstance(image, dict) else type(image).__name__
        raise DataError(f"{file} has images with {came}; expected fname and class")
    return number_in(file, f"the class of {image['fname']}", image["class"], classes, least=1) - 1


def _year_first(name: str) -> str:
    """ "Acura TL Sedan 2012" -> "2012 Acura TL Sedan", as CoOp does."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}" if model else name


LAYOUT = listed_layout(
    dataset="StanfordCars",
    looks_for=f"Stanford Cars: ROOT/devkit/*.mat, ROOT/{_TEST_LABELS} and ROOT/cars_{{train,test}}/*.jpg",
    matches=_matches,
    splits=lambda root: ["train", "test"],
    read=_read,
)

"""Oxford Flowers 102: imagelabels.mat, setid.mat, jpg/image_00001.jpg, ..., and cat_to_name.json where it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchsae.data.base import DataError
from patchsae.data.listed import Listing, listed_layout, need, read_json
from patchsae.data.matlab import read_mat
from patchsae.disk.claims import int_of, whole_number
from patchsae.disk.names import spoken

_SETS = {"train": "trnid", "val": "valid", "test": "tstid"}


def _matches(root: Path) -> bool:
    return any((root / name).is_file() for name in ("imagelabels.mat", "setid.mat"))


def _read(root: Path, split: str | None) -> Listing:
    label_file = need(root / "imagelabels.mat", "the class of every image")
    set_file = need(root / "setid.mat", "the numbers of the images of each split")
    labels = _variable(label_file, "labels")
    images = _variable(set_file, _SETS[str(split)])
    for label in labels:
        whole_number(label_file, "a label", label, len(labels), least=1)
    for image in images:
        whole_number(set_file, "the number of an image", image, len(labels), least=1)
    return Listing(
        file=set_file,
        paths=[f"jpg/image_{image:05d}.jpg" for image in images],
        labels=[labels[image - 1] - 1 for image in images],
        classnames=_classnames(root, max(labels)),
    )


def _variable(path: Path, name: str) -> list[int]:
    variables = read_mat(path)
    if name not in variables:
        raise DataError(f"{path} holds {', '.join(variables) or 'nothing'}; expected a variable {name!r}")
    if not isinstance(variables[name], np.ndarray) or not variables[name].size:
        raise DataError(f"{path} holds no numbers under {name!r}")
    found = [int_of(value) for value in variables[name].ravel().tolist()]
    if None in found:
        raise DataError(f"{path} holds under {name!r} a number that is not whole")
    return [value for value in found if value is not None]


def _classnames(root: Path, classes: int) -> list[str]:
    """From cat_to_name.json ({"1": "pink primrose", ...}), as CoOp keeps it; else torchvision's."""
    path = root / "cat_to_name.json"
    if path.is_file():
        names = read_json(path)
        numbers = [str(number) for number in range(1, classes + 1)]
        unnamed = [number for number in numbers if not (isinstance(names, dict) and isinstance(names.get(number), str))]
        if unnamed:
            raise DataError(f"{path} has no name for class {unnamed[0]}; expected names of '1' .. '{classes}'")
        return [spoken(names[number]) for number in numbers]
    from torchvision.datasets import Flowers102  # the names are long, and torch loads for those who need them

    known = [name.rstrip("?") for name in getattr(Flowers102, "classes", [])]
    if classes > len(known):
        need(path, 'the names of the classes: {"1": "pink primrose", ...}')
    return known


LAYOUT = listed_layout(
    dataset="OxfordFlowers",
    looks_for="Oxford Flowers 102: ROOT/imagelabels.mat, ROOT/setid.mat and ROOT/jpg/*.jpg",
    matches=_matches,
    splits=lambda root: list(_SETS),
    read=_read,
)

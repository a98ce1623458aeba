"""What ImageNet's codes mean: n01440764 is label 0, "tench"; and the classes of its validation images."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import Path

from patchsae.data.base import DataError
from patchsae.data.listed import read_text
from patchsae.data.matlab import number_in, read_mat
from patchsae.disk.names import written

CODE = re.compile(r"n\d{8}")
_CLASSES = 100_000
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_VAL_NAME = re.compile(r".*_val_(\d{8})\.jpe?g", re.IGNORECASE)


def names_by_code() -> dict[str, str]:
    """The 1000 codes in the order of their labels, with OpenAI's class names. Two names occur twice."""
    return dict(_codes_and_names())


def read_names(path: Path) -> dict[str, str]:
    """classnames.txt of CoOp: "n01440764 tench" per line.

    Raises:
        DataError: a line without a name.
    """
    names = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        code, _, name = line.strip().partition(" ")
        if line.strip() and not name:
            raise DataError(f"{path} line {number} is {line!r}; expected FOLDER NAME OF THE CLASS")
        if code:
            names[code] = written(name.strip())
    return names


def names_folders(path: Path, folders: Collection[str]) -> bool:
    """Whether a classnames.txt is CoOp's, by class folder or code; others have a name on each line and nothing else."""
    lines = read_text(path).splitlines() if path.is_file() else []
    heads = (line.split()[0] for line in lines if len(line.split()) > 1)
    return any(head in folders or CODE.fullmatch(head) for head in heads)


def val_truth(root: Path) -> Path | None:
    """Where the classes of the validation images are in `root`, None where they are not.

    ILSVRC2012's devkit as its archive unpacks it, or what torchvision makes of it (meta.bin).
    """
    for folder in (root / "ILSVRC2012_devkit_t12" / "data", root / "devkit" / "data"):
        if (folder / _TRUTH).is_file() and (folder / "meta.mat").is_file():
            return folder
    return root / "meta.bin" if (root / "meta.bin").is_file() else None


def val_codes(truth: Path) -> list[str]:
    """The code of validation image 1, 2, ... out of what `val_truth` found.

    Raises:
        DataError: files that do not fit together.
    """
    return _of_devkit(truth) if truth.is_dir() else _of_torchvision(truth)


def val_number(name: str) -> int | None:
    """50000 of "ILSVRC2012_val_00050000.JPEG"; None for other names."""
    found = _VAL_NAME.fullmatch(name)
    return int(found[1]) if found else None


@functools.cache
def _codes_and_names() -> tuple[tuple[str, str], ...]:
    from open_clip import IMAGENET_CLASSNAMES  # both load torch, for those who need them
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))


def _of_devkit(folder: Path) -> list[str]:
    synsets = read_mat(folder / "meta.mat").get("synsets")
    if not isinstance(synsets, list) or not synsets or not {"ILSVRC2012_ID", "WNID"} <= set(synsets[0]):
        raise DataError(f"{folder / 'meta.mat'} holds no synsets with ILSVRC2012_ID and WNID")
    numbers = [number_in(folder / "meta.mat", "ILSVRC2012_ID", s["ILSVRC2012_ID"], _CLASSES) for s in synsets]
    code = {str(number): written(str(s["WNID"])[:80]) for number, s in zip(numbers, synsets, strict=True)}
    truth = read_text(folder / _TRUTH).split()
    wrong = [entry for entry in truth if entry not in code]
    if wrong:
        raise DataError(f"{folder / _TRUTH} has {wrong[0][:40]!r}; expected an ILSVRC2012_ID of meta.mat")
    return [code[entry] for entry in truth]


def _of_torchvision(path: Path) -> list[str]:
    from patchsae.disk.archives import load_archive  # torch loads for those who need it

    try:
        content = load_archive(path, {})
    except ValueError as error:
        raise DataError(str(error)) from error
    codes = content[1] if isinstance(content, tuple) and len(content) == 2 else None
    if not (isinstance(codes, list) and all(isinstance(code, str) for code in codes)):
        raise DataError(f"{path} is not torchvision's: expected a dict of names and the codes of the validation images")
    return codes

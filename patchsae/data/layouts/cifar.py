"""CIFAR-10 and CIFAR-100 in "python version": pickles of pixels and labels, read without running anything in them."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchsae.data.base import DataError, ImageDataset, Sample, position
from patchsae.data.layout import Layout, dataset_name
from patchsae.data.listed import need
from patchsae.disk.claims import whole_number
from patchsae.disk.names import spoken
from patchsae.errors import brief

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_MALFORMED = (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError, struct.error)


@dataclass(frozen=True)
class _Version:
    dataset: str
    files: dict[str, list[str]]
    names_file: str
    names: str
    labels: str


_VERSIONS = (
    _Version(
        dataset="CIFAR10",
        files={"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        names_file="batches.meta",
        names="label_names",
        labels="labels",
    ),
    _Version("CIFAR100", {"train": ["train"], "test": ["test"]}, "meta", "fine_label_names", "fine_labels"),
)


class CifarDataset(ImageDataset):
    """Pictures of 32 x 32 in batch files. Ids are `FILE#row`.

    Pixels stay in the files, which are mapped into memory: worker processes share them.
    """

    def __init__(self, name: str, batches: list[_Batch], classnames: list[str]) -> None:
        super().__init__(name, np.concatenate([batch.labels for batch in batches]), classnames)
        self.batches = batches
        self.ends = np.cumsum([len(batch.labels) for batch in batches])

    def ids(self, i: int) -> str:
        batch, row = self._place(i)
        return f"{batch.file.name}#{row}"

    def sample(self, i: int) -> Sample:
        batch, row = self._place(i)
        pixels = np.memmap(batch.file, np.uint8, "r", batch.offset + row * _PIXELS, (3, _SIDE, _SIDE))
        return Sample(
            Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), int(self.labels[i]), self.ids(i)
        )

    def _place(self, i: int) -> tuple[_Batch, int]:
        number = int(np.searchsorted(self.ends, position(i, len(self)), side="right"))
        return self.batches[number], int(i - self.ends[number] + len(self.batches[number].labels))


@dataclass(frozen=True)
class _Batch:
    file: Path
    offset: int
    """Where the pixels of row 0 start in the file: three planes of 32 x 32 bytes per row."""
    labels: np.ndarray


def _matches(source: object) -> bool:
    return isinstance(source, str) and _version(Path(source)) is not None


def _version(root: Path) -> _Version | None:
    """By the names of the files. CIFAR-100's (train, test, meta) may be something else, so all three must be there."""
    tenfold, hundredfold = _VERSIONS
    if any((root / name).is_file() for name in ("data_batch_1", "test_batch", "batches.meta")):
        return tenfold
    return hundredfold if all((root / name).is_file() for name in ("train", "test", "meta")) else None


def _open(source: object, split: str | None, outside: bool) -> ImageDataset:
    root = Path(str(source))
    version = _version(root)
    assert version is not None  # `_matches` said so
    meta = need(root / version.names_file, "the names of the classes")
    names = [spoken(_text(meta, name)) for name in _value(_read(meta), version.names, list, meta)]
    files = [need(root / file, "a batch of images") for file in version.files[str(split)]]
    batches = [_batch(file, version.labels, len(names)) for file in files]
    return CifarDataset(dataset_name(version.dataset, split), batches, names)


def _batch(file: Path, labels_key: str, classes: int) -> _Batch:
    content = _read(file)
    numbers = _value(content, labels_key, list, file)
    labels = np.array([whole_number(file, "a label", number, classes - 1) for number in numbers], np.int64)
    pixels = _value(content, "data", _Array, file).bytes(file)
    offset = file.read_bytes().find(pixels) if pixels else -1
    if len(pixels) != len(labels) * _PIXELS or offset < 0:
        raise DataError(f"{file} has {len(pixels)} bytes of pixels and {len(labels)} labels; expected 3072 per label")
    return _Batch(file, offset, labels)


def _value(content: Any, key: str, kind: type, file: Path) -> Any:
    """The entry of a dict whose keys are text or, from Python 2, bytes."""
    value = content.get(key, content.get(key.encode())) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{file} holds no {key!r}; expected a batch of CIFAR in its python version")
    return value


def _text(file: Path, name: object) -> str:
    if not isinstance(name, bytes | str):
        raise DataError(f"{file} has a {type(name).__name__} among the names of classes; expected texts")
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def _read(file: Path) -> Any:
    try:
        content = file.read_bytes()
        _refuse_false_claims(content)
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _MALFORMED as error:
        raise DataError(f"{file} cannot be read as a batch of CIFAR: {brief(error)}; nothing of it was run") from error


def _refuse_false_claims(pickled: bytes) -> None:
    """An unpickler takes memory for the largest place in its memo: none can be larger than what there is to put there.

    Lengths of texts are held against what follows by the walk itself.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if "PUT" in opcode.name and int(argument or 0) > len(pickled):
            raise pickle.UnpicklingError(f"it has {argument:,} for a place in its memo of at most {len(pickled):,}")


class _Array:
    """Stands in for a numpy array: keeps the state that it is built with."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def bytes(self, file: Path) -> bytes:
        """The raw content of (version, shape, dtype, is_fortran, raw), of an array of unsigned bytes."""
        state = self.state if isinstance(self.state, tuple) else ()
        if len(state) != 5 or not isinstance(state[4], bytes) or not isinstance(state[2], _Dtype) or state[3]:
            raise DataError(f"{file} holds pixels in a form that CIFAR does not use; expected the published file")
        if state[2].name not in ("u1", b"u1"):
            raise DataError(f"{file} holds pixels of type {state[2].name!r}; expected unsigned bytes, u1")
        return state[4]


class _Dtype:
    """Stands in for a numpy type: keeps its name."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


_STAND_INS = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
}


class _Unpickler(pickle.Unpickler):
    """Builds stand-ins for numpy's arrays and refuses every other name, so that nothing in the file can run."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[f"{module}.{name}"]


LAYOUT = Layout(
    name="CIFAR, python version",
    looks_for="CIFAR-10 or CIFAR-100, python version: ROOT/data_batch_1 ... test_batch, or ROOT/{train,test,meta}",
    matches=_matches,
    splits=lambda source: ["train", "test"],
    open=_open,
    precedence=1,
)

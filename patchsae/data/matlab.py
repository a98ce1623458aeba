"""MAT files, as far as the labels of Flowers102, StanfordCars and ImageNet need them, without scipy.

Level 5 of "MAT-File Format" (The MathWorks), which MATLAB writes as -v6 and -v7: a header of 128 bytes, then tagged
elements, each of which may be compressed by zlib. Nothing in such a file can run.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from patchsae.data.base import DataError
from patchsae.disk.claims import whole_number
from patchsae.errors import brief

_HEADER = 128
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC = range(6, 16)
_MOST_BYTES = 32 << 20  # of a file, and of all that is compressed in it; the largest in use has 4 MB
_DEEPEST = 16
_NOTHING = np.empty((0, 0))  # one for all: a small file can hold millions


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MAT file by name.

    Numeric arrays become numpy arrays of the same shape; texts become str; a cell array becomes the list of its cells
    and a struct array the list of its elements as dicts, both in column order.

    Raises:
        DataError: no MAT file of level 5 (-v7.3 is HDF5, a format of its own), a damaged one, one of more than 32 MB,
            or a sparse array or an object in it.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path} is larger than {_MOST_BYTES:,} bytes; no list of labels is")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or content[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise DataError(f"{path} is not a MAT file of level 5 (MATLAB's -v6 and -v7); it starts {content[:20]!r}")
    try:
        return dict(_Reader(order).variables(content[_HEADER:]))
    except (ValueError, IndexError, zlib.error) as error:
        raise DataError(f"{path} is a damaged MAT file: {brief(error)}") from error


def number_in(path: Path, what: str, value: Any, most: int, least: int = 0) -> int:
    """The whole number in an array of one element, out of `path`. Raises DataError for anything else."""
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise DataError(f"{path}: {what} is {type(value).__name__}; expected an array of one number")
    return whole_number(path, what, value.ravel()[0].item(), most, least)


class _Reader:
    """Elements of one byte order: tag (type, size), data, padding to 8 bytes."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.room = _MOST_BYTES

    def variables(self, data: bytes) -> Iterator[tuple[str, Any]]:
        for type, element in self._elements(data):
            if type == _COMPRESSED:
                type, element = next(self._elements(self._inflate(element)), (0, b""))
            if type == _MATRIX:
                yield self._matrix(element, 0)

    def _elements(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at + 8 <= len(data):
            first, size = struct.unpack_from(self.order + "2I", data, at)
            if first >> 16:  # a small element: the size in the upper half, the data in the second word
                type, size, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
            else:
                type, start = first, at + 8
                end = start + size + (0 if type == _COMPRESSED else -size % 8)
            if start + size > min(len(data), end):
                raise ValueError(f"an element of {size} bytes, with {len(data) - start} left")
            yield type, data[start : start + size]
            at = end

    def _matrix(self, data: bytes, depth: int) -> tuple[str, Any]:
        if not data:
            return "", _NOTHING
        if depth > _DEEPEST:
            raise ValueError(f"arrays within arrays, more than {_DEEPEST} deep")
        elements = self._elements(data)
        kind = int(self._numbers(elements)[0]) & 0xFF
        shape = self._numbers(elements).tolist()
        name = self._text(elements)
        if kind in _NUMERIC:
            return name, self._numbers(elements).reshape(shape, order="F")
        if kind == _CHAR:
            return name, self._text(elements)
        if kind == _CELL:
            return name, [self._matrix(cell, depth + 1)[1] for _, cell in elements]
        if kind == _STRUCT:
            return name, self._struct(elements, depth)
        raise ValueError(f"variable {name!r} is of class {kind}; expected numbers, text, cells or a struct")

    def _struct(self, elements: Iterator[tuple[int, bytes]], depth: int) -> list[dict[str, Any]]:
        width = int(self._numbers(elements)[0])
        _, packed = next(elements, (0, b""))
        if width < 1:
            raise ValueError(f"field names of {width} bytes")
        names = [packed[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(packed), width)]
        values = [self._matrix(value, depth + 1)[1] for _, value in elements]
        step = max(1, len(names))
        return [dict(zip(names, values[at : at + step], strict=True)) for at in range(0, len(values), step)]

    def _numbers(self, elements: Iterator[tuple[int, bytes]]) -> np.ndarray:
        type, data = next(elements, (0, b""))
        if type not in _NUMBERS:
            raise ValueError(f"an element of type {type}; expected numbers")
        return np.frombuffer(data, self.order + _NUMBERS[type])

    def _text(self, elements: Iterator[tuple[int, bytes]]) -> str:
        type, data = next(elements, (1, b""))
        if type not in _TEXT:
            raise ValueError(f"an element of type {type}; expected text")
        encoding = _TEXT[type]
        if encoding in ("utf-16", "utf-32"):
            encoding += "-le" if self.order == "<" else "-be"
        return data.decode(encoding)

    def _inflate(self, data: bytes) -> bytes:
        stream = zlib.decompressobj()
        content = stream.decompress(data, self.room + 1)
        self.room -= len(content)
        if self.room < 0:
            raise ValueError(f"compressed elements of more than {_MOST_BYTES:,} bytes")
        return content

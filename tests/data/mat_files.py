"""MAT files of level 5, written from the published format, for the tests that read them."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

Value = Any
"""An array of numbers, a text, a list (cells) or {"field": [values]} (a struct array)."""

_NUMBERS = {"u1": (2, 9), "u2": (4, 11), "i4": (5, 12), "f8": (9, 6)}


def mat_file(variables: dict[str, Value], compressed: bool = True, order: str = "<") -> bytes:
    """The bytes of a MAT file."""
    mark = b"IM" if order == "<" else b"MI"
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(order + "H", 0x0100) + mark
    parts = [_matrix(name, value, order) for name, value in variables.items()]
    if compressed:
        parts = [struct.pack(order + "II", 15, len(packed := zlib.compress(part))) + packed for part in parts]
    return header + b"".join(parts)


def _matrix(name: str, value: Value, order: str) -> bytes:
    if isinstance(value, str):
        kind, shape = 4, (1, len(value))
        body = _element(4, value.encode("utf-16-le" if order == "<" else "utf-16-be"), order)
    elif isinstance(value, list):
        kind, shape = 1, (1, len(value))
        body = b"".join(_matrix("", cell, order) for cell in value)
    elif isinstance(value, dict):
        kind, shape = 2, (1, len(next(iter(value.values()))))
        names = b"".join(field.encode().ljust(32, b"\0") for field in value)
        body = _element(5, struct.pack(order + "i", 32), order) + _element(1, names, order)
        body += b"".join(
            _matrix("", entry, order) for entries in zip(*value.values(), strict=True) for entry in entries
        )
    else:
        array = np.atleast_2d(value)
        (type, kind), shape = _NUMBERS[array.dtype.str[1:]], array.shape
        body = _element(type, array.astype(order + array.dtype.str[1:]).tobytes("F"), order)
    flags = _element(6, struct.pack(order + "II", kind, 0), order)
    dims = _element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    return _element(14, flags + dims + _element(1, name.encode(), order) + body, order)


def _element(type: int, data: bytes, order: str) -> bytes:
    if 0 < len(data) <= 4:
        return struct.pack(order + "I", len(data) << 16 | type) + data.ljust(4, b"\0")
    return struct.pack(order + "II", type, len(data)) + data + b"\0" * (-len(data) % 8)

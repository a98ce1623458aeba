"""Configuration of a stage as TOML: plain values, written so that reading returns them, compared key by key."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def plain(value: Any, key: str = "config") -> Any:
    """`value` in TOML's own types: dataclasses and mappings as dict, sequences as list, paths as text, numpy scalars.

    None entries of a mapping are left out (TOML has no null; absent means None). TypeError names the key of any other.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{key}.{k}") for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    value = _unboxed(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{key} is {value!r} ({type(value).__name__}); expected text, a number, true/false or lists and tables"
    )


def dumps(table: Mapping[str, Any]) -> str:
    """TOML of a mapping of plain values, which `loads` returns; a list is one line, where tomli-w makes several."""
    return "\n".join(_lines(table, ())).strip("\n") + "\n"


def loads(text: str) -> dict[str, Any]:
    """Parse TOML."""
    return tomllib.loads(text)


def read(path: Path) -> dict[str, Any]:
    """Parse the TOML file at `path`; ValueError names the file where it is not TOML."""
    try:
        return loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value) wherever two plain mappings differ; None where a side has no such key."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [*before, *(key for key in after if key not in before)]
    return {k: (before.get(k), after.get(k)) for k in keys if not _same(before.get(k), after.get(k))}


def _unboxed(value: Any) -> Any:
    """A scalar of numpy as Python's."""
    import numpy as np  # here: who only reads settings, as --help does, would wait for it longer than for all the rest

    return value.item() if isinstance(value, np.generic) else value


def _same(a: Any, b: Any) -> bool:
    # repr: a NaN setting equals itself; == alone would also let True pass for 1
    return repr(a) == repr(b) or (a == b and isinstance(a, bool) == isinstance(b, bool))


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{_key(key)}.")
        else:
            yield prefix + _key(key), value


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Plain entries first: in TOML everything after a [header] belongs to it."""
    yield from (f"{_key(k)} = {_value(v)}" for k, v in table.items() if not isinstance(v, Mapping))
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, key)
            yield ""
            yield "[" + ".".join(_key(part) for part in inner) + "]"
            yield from _lines(value, inner)


def _key(key: str) -> str:
    return key if _BARE_KEY.match(key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _string(text: str) -> str:
    escaped = (_ESCAPES.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c) for c in text)
    return '"' + "".join(escaped) + '"'

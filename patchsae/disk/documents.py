"""JSON of strangers, read strictly: no key twice, no NaN, no number out of range, no bottomless nesting."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from patchsae.disk.claims import FalseClaim

MOST = 64 * 2**20
"""Bytes of a document: parsed, a document takes up to 30 times as much."""


def read_json(path: Path, most: int = MOST) -> Any:
    """The JSON of a file.

    Raises:
        ValueError: naming the file: no UTF-8, no JSON, a key twice, NaN, a number out of range, too deep, or more than
            `most` bytes (`FalseClaim`).
    """
    with path.open("rb") as file:
        # no more than the file has: to read N bytes, Python takes room for N
        content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    return parse_json(path, content, most)


def parse_json(said_by: str | os.PathLike[str], content: bytes | str, most: int = MOST) -> Any:
    """The JSON in a part of a file; `said_by` names it in errors. Raises as `read_json`."""
    if len(content) > most:
        raise FalseClaim(f"{said_by} holds more than {most:,} bytes of JSON; nothing was read")
    try:
        return json.loads(content, object_pairs_hook=_without_twins, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"{said_by} is not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{said_by} is not JSON that anybody means: it is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError, integers of thousands of digits, and the hooks here
        raise ValueError(f"{said_by} is not JSON that can be read: {str(error)[:200]}") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:40]!r} occurs twice")
        table[key] = value
    return table


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number

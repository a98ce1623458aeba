"""Which paths may be read, written or removed because a file says so. Nothing else decides it."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class OutsidePath(ValueError):
    """A file names a path outside of the folder that it may speak of."""


def is_plain(name: str) -> bool:
    """Whether `name` is one path component of letters, digits, '.', '_', '-' that does not begin with a mark."""
    return _NAME.match(name) is not None


def plain_name(name: str) -> str:
    """`name`, if it `is_plain`: what a run may call its files. ValueError otherwise."""
    if not is_plain(name):
        raise ValueError(f"name is {name!r}; expected one path component of letters, digits, '.', '_', '-'")
    return name


def below(root: Path, named: str | os.PathLike[str], said_by: str | os.PathLike[str]) -> Path:
    """The path `named`, relative to `root`, that the file `said_by` asks for.

    Decided by the text alone, so that nothing outside is touched: links inside of `root` are its owner's own doing.

    Raises OutsidePath for an absolute path, one with "..", and what is no path (a NUL, half a character, nothing).
    """
    text = os.fspath(named)
    if not is_below(text):
        raise OutsidePath(f"{said_by} names {text!r}; expected a path below {root}")
    return root / text


def is_below(text: str) -> bool:
    """Whether `text` is what `below` takes; asked of every image of a list, so no path is built for it."""
    parts = text.split("/")
    return any(part not in ("", ".") for part in parts) and bool(parts[0]) and ".." not in parts and _is_name(text)


def _is_name(text: str) -> bool:
    """Whether a file can be called so."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair, out of JSON
        return False

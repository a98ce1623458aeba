"""Files that are as they were or complete: written under a temporary name beside them, synced, renamed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place on a clean exit and is removed on an exception.

    A process killed inside the block leaves `path` untouched and the temporary file for `remove_partial`.
    """
    temporary = _free_name(path)
    mode = temporary.stat().st_mode  # what this user's umask gives; safetensors makes its files private
    try:
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Make `path` hold `content`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Make `path` hold `text` in UTF-8, line ends as given, atomically."""
    write_bytes(path, text.encode())


def is_partial(path: Path) -> bool:
    """Whether `path` is a temporary name of `replacing`."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def remove_partial(folder: Path) -> None:
    """Remove what killed writers left in `folder`. The caller holds the lock that keeps living writers out."""
    for path in folder.iterdir():
        if is_partial(path):
            path.unlink(missing_ok=True)


def _free_name(path: Path) -> Path:
    for attempt in itertools.count():
        # The real ending comes last but one, and the writers here look at content, never at the ending.
        candidate = path.with_name(f".{path.name}.{os.getpid()}-{attempt}{_SUFFIX}")
        try:
            candidate.touch(exist_ok=False)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("itertools.count ends")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

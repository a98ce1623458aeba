"""Files that are as they were or complete: written under a temporary name beside them, synced, renamed."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchsae.disk import checksums
from patchsae.errors import PatchsaeError
from patchsae.words import size

_PARTIAL = re.compile(r"\..+\.\d+-\d+\.partial\Z")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = re.compile(rf"os error ({'|'.join(map(str, _FULL))})\b")  # safetensors' errors have no errno


class DiskFull(PatchsaeError):
    """There is no room for a file."""


@contextmanager
def replacing(path: Path, checksum: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place on a clean exit and is removed on an exception.

    A process killed inside the block leaves `path` untouched and the temporary file for `remove_partial`. In a folder
    that keeps checksums the file gets one, unless it has its own (`checksum=False`).

    Raises DiskFull where there is no room, naming the file and what is free.
    """
    with room_for(path):
        temporary = _free_name(path)
        mode = temporary.stat().st_mode  # what this user's umask gives; safetensors makes its files private
        try:
            yield temporary
            temporary.chmod(mode)
            _sync(temporary)
            if checksum and checksums.kept(path.parent) and path.name != checksums.FILE:
                checksums.record(path, checksums.sha256_of(temporary))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """DiskFull in place of what a writer of `path` raises where the disk, a quota or a limit on files is reached."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not (getattr(error, "errno", None) in _FULL or _FULL_IN_WORDS.search(str(error))):
            raise
        free = shutil.disk_usage(path.parent).free
        raise DiskFull(
            f"no room to write {path}: {os.strerror(_number(error))}, with {size(free)} free there. What was "
            "complete before it is kept"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Make `path` hold `content`, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Make `path` hold `text` in UTF-8, line ends as given, atomically."""
    write_bytes(path, text.encode())


def is_partial(path: Path) -> bool:
    """Whether `path` is a temporary name of `replacing`."""
    return _PARTIAL.match(path.name) is not None


def remove_partial(folder: Path) -> None:
    """Remove what killed writers left in `folder`. The caller holds the lock that keeps living writers out."""
    for path in folder.iterdir():
        if is_partial(path):
            path.unlink(missing_ok=True)


def _free_name(path: Path) -> Path:
    for attempt in itertools.count():
        # The real ending comes last but one, and the writers here look at content, never at the ending.
        candidate = path.with_name(f".{path.name}.{os.getpid()}-{attempt}.partial")
        try:
            candidate.touch(exist_ok=False)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("itertools.count ends")


def _number(error: Exception) -> int:
    found = _FULL_IN_WORDS.search(str(error))
    return int(found[1]) if found else int(getattr(error, "errno", errno.ENOSPC))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

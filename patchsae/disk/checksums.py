"""Files that are read back as they were written: a folder's checksums stand beside its files, in `.sums`.

A line is what `sha256sum` prints, and `sha256sum -c .sums` reads those of a finished stage. It is appended before its
file takes the name: a process killed in between leaves the file before, whose line still stands, so a file is whole if
any line of its name fits it. Only folders that `keep` was called for have them; `atomic.replacing` adds the lines.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from patchsae.disk.again import CONFIG, again
from patchsae.disk.paths import is_plain
from patchsae.errors import PatchsaeError, brief

FILE = ".sums"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)\Z")
_BLOCK = 1 << 20
_GROWS = ".jsonl"  # by lines, of which a kill may tear the last
# What readers raise on content that is not what was written: JSON, TOML, safetensors, parquet, and what is made of them
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError, OverflowError)


class DamagedFile(PatchsaeError):
    """A file of a run is not what was written to it; the message says how to make it again."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}. {again(path if path.is_dir() else path.parent)}")
        self.path = path
        self.reason = reason


def keep(folder: Path) -> None:
    """From now on the files that appear in `folder` have checksums."""
    with open_own(folder / FILE):
        pass


def kept(folder: Path) -> bool:
    """Whether files that appear in `folder` have checksums."""
    return (folder / FILE).exists()


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """The file at `path`, for a reader.

    Raises DamagedFile where it is gone, where it is not what was written, and for what the reader stumbles over. A
    folder of a run from before there were checksums is read unchecked, and a note on standard error says so.
    """
    verified(path)
    with understanding(path):
        yield path


def verified(path: Path) -> Path:
    """The path, for a reader that says itself what it stumbles over. Raises DamagedFile by the checksum alone."""
    reason = damage(path)
    if reason:
        raise DamagedFile(path, reason)
    return path


@contextmanager
def understanding(path: Path) -> Iterator[None]:
    """DamagedFile for what a reader stumbles over that makes something of the content of `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except PatchsaeError:
        raise
    except (*_UNREADABLE, OSError, SafetensorError) as error:
        if getattr(error, "errno", None) is not None:  # the system's; parquet has errors of this kind without a number
            raise
        text = brief(error, 1000).removeprefix(f"{path}: ").replace(f"{path} ", "it ")
        raise DamagedFile(path, f"{text} ({type(error).__name__})" if text else type(error).__name__) from error


def damage(path: Path) -> str:
    """What is wrong with a file by its checksum, "" where nothing is known to be."""
    known = path.name in _sums(path.parent)
    if not path.exists():
        return "it is gone" if known else ""
    if not kept(path.parent) and (path.parent / CONFIG).exists():
        _note_unchecked(path.parent)
    # The lines are read after the file: a writer at work has written down what it writes. Twice, as it may finish now.
    if known and not any(_digest(path) in _sums(path.parent).get(path.name, ()) for _ in range(2)):
        return "its checksum is not that of what was written"
    return ""


def recorded(folder: Path) -> list[str]:
    """The names of the files that have a checksum, in the order in which they first appeared."""
    return list(_sums(folder))


def record(path: Path, digest: str, sync: bool = True) -> None:
    """Say that `path` is about to hold content of this SHA-256. sync: wait until that is on the disk."""
    with open_own(path.parent / FILE) as file:
        file.write(f"{digest}  {path.name}\n".encode())
        if sync:
            os.fsync(file.fileno())


def settled(folder: Path, gone: Collection[str] = ()) -> str:
    """What `.sums` comes down to: one line, the last, for every file but those that are `gone` or about to be."""
    there = {name: digests for name, digests in _sums(folder).items() if name not in gone and (folder / name).exists()}
    return "".join(f"{digests[-1]}  {name}\n" for name, digests in there.items())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def open_own(path: Path) -> io.FileIO:
    """A file that grows by appending, made if missing. OSError where a link stands there: it could lead anywhere."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, "ab", buffering=0)


def _digest(path: Path) -> str:
    """The SHA-256 of a file; of one that grows by lines, without a last one that is not whole."""
    if path.suffix != _GROWS:
        return sha256_of(path)
    content = path.read_bytes()
    return hashlib.sha256(content[: content.rfind(b"\n") + 1]).hexdigest()


def _sums(folder: Path) -> dict[str, list[str]]:
    """Name -> the checksums that were recorded for it, oldest first."""
    path = folder / FILE
    if not path.exists():
        return {}
    found: dict[str, list[str]] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last one was torn by a kill
        match = _LINE.match(line.decode(errors="replace"))
        if match is None or not is_plain(match[2]):
            raise DamagedFile(path, f"it holds the line {line[:80]!r}")
        found.setdefault(match[2], []).append(match[1])
    return found


@functools.cache
def _note_unchecked(folder: Path) -> None:
    print(f"{folder} was written before files had checksums: they are read unchecked", file=sys.stderr)

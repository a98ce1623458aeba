"""What a file is, by its bytes and never by its name: so that a reader can say what came where weights were due."""

from __future__ import annotations

import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

HEAD = 4096  # bytes that tell a file's kind
AGAIN = "download or copy it again"


@dataclass(frozen=True)
class Content:
    """The kind of a file in a word, in a sentence's words, and what helps where another was expected ("": nothing)."""

    kind: str
    said: str
    advice: str = ""


_BEGINNINGS = (
    (b"version https://git-lfs", Content("lfs", "a git-LFS pointer, not the file itself", "run `git lfs pull`")),
    (b"\x1f\x8b", Content("compressed", "compressed with gzip", "decompress it (gunzip) first")),
    (b"BZh", Content("compressed", "compressed with bzip2", "decompress it (bunzip2) first")),
    (b"\xfd7zXZ", Content("compressed", "compressed with xz", "decompress it (unxz) first")),
    (b"\x28\xb5\x2f\xfd", Content("compressed", "compressed with zstd", "decompress it (unzstd) first")),
    (b"7z\xbc\xaf\x27\x1c", Content("compressed", "a 7-Zip archive", "unpack it first")),
    (b"\x89HDF\r\n\x1a\n", Content("hdf5", "an HDF5 file (Keras, MATLAB 7.3)")),
    (b"\x93NUMPY", Content("npy", "a numpy array (.npy)")),
    (b"GGUF", Content("gguf", "a GGUF file (llama.cpp)")),
    (b"MATLAB 5.0", Content("mat", "a MATLAB file")),
    (b"\x89PNG", Content("picture", "a PNG picture")),
    (b"\xff\xd8\xff", Content("picture", "a JPEG picture")),
    (b"%PDF", Content("pdf", "a PDF document")),
)
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_OLD_TAR = (b"sys_info", b"pickle", b"tensors", b"storages")
_SAVE_AGAIN = "if you trust it, load it in an old torch and save it again with torch.save (1.6 or newer)"


class UnexpectedContent(ValueError):
    """A file is of another kind than its reader takes."""


def unexpected(path: Path, expected: str) -> UnexpectedContent:
    """The error for a file that its reader cannot take: what it is, what was expected, what helps."""
    content = what_is(path)
    advice = f": {content.advice}" if content.advice else ""
    return UnexpectedContent(f"{path} is {content.said}; expected {expected}{advice}")


def what_is(path: Path) -> Content:
    """What lies at a path that exists; cheap, and nothing of it is run or unpacked.

    Raises OSError where it cannot be read.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return Content("directory", "a directory", "name the file in it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        return Content("special", "no regular file (a pipe or a device)")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return Content("empty", "empty", AGAIN)
    if not head.strip(b"\0"):
        return Content("zeros", "zeros, as of a download that never finished", AGAIN)
    return _binary(path, head, status.st_size) or _written(head) or Content("unknown", "of no kind that is known here")


def _binary(path: Path, head: bytes, size: int) -> Content | None:
    if head[4:9] == b"\0\0\0\0{":  # first: the length before it may look like the beginning of anything
        return _safetensors(int.from_bytes(head[:8], "little"), size)
    for beginning, content in _BEGINNINGS:
        if head.startswith(beginning):
            return content
    if head.startswith(b"PK"):
        return _zip(path)
    if head.startswith(b"PAR1"):
        return _parquet(path, size)
    if head.startswith(_OLD_TORCH):
        return Content("old torch", "a file of torch < 1.6", _SAVE_AGAIN)
    if head[257:262] == b"ustar" or head[:100].rstrip(b"\0").startswith(_OLD_TAR):
        old = head.startswith(_OLD_TAR)
        return Content("tar", "a tar of torch < 0.4" if old else "a tar archive", _SAVE_AGAIN if old else "unpack it")
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Content("pickle", "a bare pickle, which could run anything", _SAVE_AGAIN)
    return None


def _zip(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return Content("cut zip", "a zip archive (a torch file is one) that is cut off or damaged", AGAIN)
    inner = {name.partition("/")[2] for name in names}
    if "data.pkl" in inner and "constants.pkl" in inner:
        return Content("torchscript", "a TorchScript archive")
    if "data.pkl" in inner:
        return Content("torch", "a torch archive")
    if names and all(name.endswith(".npy") for name in names):
        return Content("npz", "numpy arrays (.npz)")
    return Content("zip", f"a zip archive of {', '.join(names[:2])[:80] or 'nothing'}", "unpack it first")


def _parquet(path: Path, size: int) -> Content:
    with path.open("rb") as file:
        file.seek(-min(4, size), os.SEEK_END)
        whole = size >= 12 and file.read() == b"PAR1"
    return Content("parquet", "a parquet file") if whole else Content("cut parquet", "a cut-off parquet file", AGAIN)


def _safetensors(header: int, size: int) -> Content:
    if 8 + header <= size:
        return Content("safetensors", "a safetensors file")
    return Content("cut safetensors", "a safetensors file that is cut off", AGAIN)


def _written(head: bytes) -> Content | None:
    """The kinds of text."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return Content("html", "a web page, as a failed download leaves", AGAIN)
    if start.startswith(b"<"):
        return Content("xml", "XML, as a failed download leaves", AGAIN)
    if start.startswith((b"{", b"[")):
        return Content("json", "JSON text")
    try:
        text = head[:200].decode("ascii")
    except UnicodeDecodeError:
        return None
    return Content("text", f"text ({text.strip()[:40]!r})") if text.isprintable() or text.split() else None

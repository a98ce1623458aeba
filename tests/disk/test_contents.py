"""A file is told by its bytes, whatever it is called, and the reader says what came and what helps."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from patchsae.disk import contents

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def torch_file(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"W": torch.ones(2)}, buffer, **options)
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), buffer)
    return buffer.getvalue()


def tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()


def other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", "hello")
    return buffer.getvalue()


KINDS = {
    "torch": (torch_file(), ""),
    "cut zip": (torch_file()[:-100], "download or copy it again"),
    "old torch": (torch_file(_use_new_zipfile_serialization=False), "save it again"),
    "safetensors": (save({"W": torch.ones(2)}), ""),
    "cut safetensors": (save({"W": torch.ones(2)})[:30], "download or copy it again"),
    "parquet": (parquet(), ""),
    "cut parquet": (parquet()[:-1], "download or copy it again"),
    "lfs": (LFS, "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><title>404</title>", "download or copy it again"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "download or copy it again"),
    "json": (b'{"error": "Repository not found"}', ""),
    "text": (b"Entry not found", ""),
    "empty": (b"", "download or copy it again"),
    "zeros": (bytes(5000), "download or copy it again"),
    "compressed": (gzip.compress(b"x"), "gunzip"),
    "tar": (tar("storages"), "torch"),
    "npz": (npz(), ""),
    "zip": (other_zip(), "unpack it"),
    "picture": (b"\x89PNG\r\n\x1a\n....", ""),
    "unknown": (bytes(range(255, 100, -1)), ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_told_by_its_bytes_and_not_by_its_name(tmp_path: Path, kind: str) -> None:
    content, advice = KINDS[kind]
    for name in ("file.pt", "file.safetensors", "file"):
        (tmp_path / name).write_bytes(content)
        found = contents.what_is(tmp_path / name)
        assert (found.kind, advice in found.advice, bool(found.said)) == (kind, True, True)
        message = str(contents.unexpected(tmp_path / name, "weights"))
        assert message.startswith(f"{tmp_path / name} is {found.said}; expected weights")
        assert len(message) - len(str(tmp_path)) < 300


@pytest.mark.parametrize("length", [0x0280, 0x8B1F, 0x4B50, 0x5A42])
def test_a_header_whose_length_looks_like_another_kind(tmp_path: Path, length: int) -> None:
    content = save({"W": torch.ones(2)}, {"padding": "x" * (length - 100)})
    header = int.from_bytes(content[:8], "little")
    padded = length.to_bytes(8, "little") + content[8 : 8 + header].ljust(length) + content[8 + header :]
    (tmp_path / "file").write_bytes(padded)
    assert contents.what_is(tmp_path / "file").kind == "safetensors"


def test_what_is_no_file_is_told_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert contents.what_is(tmp_path).kind == "directory"
    assert contents.what_is(tmp_path / "pipe").kind == "special"
    with pytest.raises(FileNotFoundError):
        contents.what_is(tmp_path / "missing")

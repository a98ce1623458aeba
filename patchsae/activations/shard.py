"""One file of a cache: a safetensors file that any library opens, with a checksum for each image.

`tokens` [n, T, D] comes last, after `image` int64 [n] (positions in the dataset), `crc32` int64 [n] (of the image's
tokens, then its scales) and, for int8, `scale` float32 [n, T]; the metadata holds the ids of the images. The SHA-256 of
everything before the tokens stands in the cache's index. So an image is verified by reading it alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchsae.activations.packing import Packed
from patchsae.errors import PatchsaeError

_NAMES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ALIGN = 64
_LARGEST_HEADER = 1 << 30


class DamagedShard(PatchsaeError):
    """A file of a cache is missing or does not hold what was written."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} {what}. `patchsae cache --out {path.parent} --check` looks through the cache and writes anew what "
            "is damaged, from the images it was made of"
        )
        self.path = path


@dataclass(frozen=True, eq=False)
class Head:
    """What stands before the tokens."""

    path: Path
    ids: list[str]
    images: np.ndarray
    """int64 [n]."""
    crc32: np.ndarray
    """int64 [n]."""
    scale: Tensor | None
    """float32 [n, T]."""
    begin: int
    """Where the tokens begin in the file."""
    shape: tuple[int, int, int]
    """[n, T, D]."""


def write_shard(path: Path, packed: Packed, images: Sequence[int], ids: Sequence[str]) -> str:
    """Write the images of a shard; 64 hex digits for the index. Raises OSError, as where the disk is full."""
    tokens = packed.tokens.cpu().contiguous()
    tensors = {"image": torch.tensor(images, dtype=torch.int64), "crc32": torch.empty(len(ids), dtype=torch.int64)}
    if packed.scale is not None:
        tensors["scale"] = packed.scale.cpu().contiguous()
    tensors["crc32"][:] = torch.tensor(_crc32s(tokens, tensors.get("scale")))
    head = _header({**tensors, "tokens": tokens}, ids) + b"".join(bytes(_bytes(tensor)) for tensor in tensors.values())
    with path.open("wb") as file:
        file.write(head)
        file.write(_bytes(tokens))
    return hashlib.sha256(head).hexdigest()


def read_head(path: Path, sha256: str) -> Head:
    """What stands before the tokens. Raises DamagedShard where it is not what the index says."""
    try:
        with path.open("rb") as file:
            header, begin = _read_header(path, file)
            file.seek(0)
            content = file.read(begin)
    except OSError as error:
        raise DamagedShard(path, f"cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedShard(path, "is damaged: its first part has another checksum than the index")
    ids = json.loads(header["__metadata__"]["ids"])
    data = begin - header["tokens"]["data_offsets"][0]
    found = {
        name: _tensor(content, data, entry) for name, entry in header.items() if name in ("image", "crc32", "scale")
    }
    return Head(
        path,
        ids,
        found["image"].numpy(),
        found["crc32"].numpy(),
        found.get("scale"),
        begin,
        tuple(header["tokens"]["shape"]),
    )


def read_rows(head: Head, rows: np.ndarray, out: Tensor) -> None:
    """Fill `out` [k, T, D] with the tokens of the images `rows`, ascending positions in the shard, int [k].

    Neighbours are read at once, so all images of a shard are one read. Raises DamagedShard, naming the image.
    """
    size = out.stride(0) * out.element_size() if len(out) else 0
    try:
        with head.path.open("rb", buffering=0) as file:
            for first, last in _runs(rows):
                file.seek(head.begin + size * int(rows[first]))
                if not _fill(file, _bytes(out[first:last])):
                    raise DamagedShard(head.path, "is damaged: it is shorter than it was written")
    except OSError as error:
        raise DamagedShard(head.path, f"cannot be read ({error.strerror})") from error
    found = np.array(_crc32s(out, None if head.scale is None else head.scale[torch.from_numpy(rows)]), np.int64)
    wrong = rows[found != head.crc32[rows]]
    if len(wrong):
        raise DamagedShard(head.path, f"is damaged: image {head.ids[wrong[0]]!r} has another checksum than was written")


def _crc32s(tokens: Tensor, scale: Tensor | None) -> list[int]:
    """Of each image's tokens, then its scales."""
    images = len(tokens)
    found = [zlib.crc32(part) for part in _parts(_bytes(tokens), images)]
    if scale is None:
        return found
    return [zlib.crc32(part, crc) for part, crc in zip(_parts(_bytes(scale), images), found, strict=True)]


def _parts(memory: memoryview, count: int) -> Iterator[memoryview]:
    """The memory in equal parts."""
    size = len(memory) // max(count, 1)
    return (memory[i * size : (i + 1) * size] for i in range(count))


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _header(tensors: dict[str, Tensor], ids: Sequence[str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"ids": json.dumps(list(ids))}}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path, file: io.BufferedReader) -> tuple[dict[str, dict[str, Any]], int]:
    """The header, not verified yet, and where the tokens begin in the file."""
    length = int.from_bytes(file.read(8), "little")
    try:
        if length > _LARGEST_HEADER:
            raise ValueError(length)
        header = json.loads(file.read(length))
        return header, 8 + length + int(header["tokens"]["data_offsets"][0])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedShard(path, "is damaged: its header cannot be read") from error


def _tensor(content: bytes, data: int, entry: dict[str, Any]) -> Tensor:
    begin, _ = entry["data_offsets"]
    count = math.prod(entry["shape"])
    if count == 0:
        return torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
    flat = torch.frombuffer(bytearray(content[data + begin :]), dtype=_DTYPES[entry["dtype"]], count=count)
    return flat.view(entry["shape"])


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """[first, last) of every run of consecutive numbers."""
    if len(rows) == 0:
        return []
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True))


def _fill(file: io.FileIO, memory: memoryview) -> bool:
    """Read until `memory` is full; False where the file ends before."""
    filled = 0
    while filled < len(memory):
        count = file.readinto(memory[filled:])
        if not count:
            return False
        filled += count
    return True

"""No memory, no time and no program for what a file of a dataset says of itself."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsae.data import BadImage, DataError, load_image, open_images
from patchsae.data.decode import decode
from patchsae.data.matlab import read_mat

from .mat_files import mat_file


@contextmanager
def little_memory(most: float = 100e6) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def _png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large and holds one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 + 3 * min(width, 1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 5)])
def test_a_picture_of_a_size_that_it_does_not_have_is_a_bad_image(size: tuple[int, int]) -> None:
    with little_memory(), pytest.raises(BadImage):
        decode(_png_of(*size), "x")


def test_a_picture_that_memory_has_no_room_for_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchsae.disk.claims.available_memory", lambda: 10**8)
    with pytest.raises(BadImage, match="an image of 9000 x 9000 pixels needs 972 MB of memory; 100 MB are available"):
        decode(_png_of(9000, 9000), "x")


def test_postscript_is_not_run() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(BadImage, match="not an image format"):
        decode(script, "x")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_what_never_ends_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2**43)
    with little_memory(), pytest.raises(BadImage, match="memory" if kind == "sparse" else "no regular file"):
        load_image(path)


@pytest.mark.parametrize("opcode", [b"r\xff\xff\xff\x7f", b"p9999999999\n"])
def test_a_pickle_has_no_more_places_than_bytes(tmp_path: Path, opcode: bytes) -> None:
    pixels = np.zeros((1, 3072), np.uint8)
    for name in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        (tmp_path / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0]}))
    meta = pickle.dumps({"label_names": ["cat"]}, protocol=2)
    (tmp_path / "batches.meta").write_bytes(meta[:-1] + opcode + b".")
    with little_memory(), pytest.raises(DataError, match=r"batches\.meta .* a place in its memo"):
        open_images(tmp_path, "test")


def test_compressed_variables_share_one_bound(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(20 << 20))
    element = struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "x.mat").write_bytes(mat_file({}) + 40 * element)
    with little_memory(150e6), pytest.raises(DataError, match=r"more than 33,554,432 bytes"):
        read_mat(tmp_path / "x.mat")


@pytest.mark.parametrize("value", [1e300, np.nan, np.inf, -1.0, 0.5, 0.0])
@pytest.mark.parametrize("where", ["labels", "trnid"])
def test_numbers_of_flowers_are_those_of_its_images(write_files, value: float, where: str) -> None:
    files = {"imagelabels.mat": {"labels": np.array([[1.0, 1.0]])}}
    files["setid.mat"] = {name: np.array([[1.0]]) for name in ("trnid", "valid", "tstid")}
    next(content for content in files.values() if where in content)[where] = np.array([[1.0, value]])
    root = write_files({name: mat_file(content) for name, content in files.items()} | {"jpg/image_00001.jpg": 1})
    with little_memory(), pytest.raises(DataError, match=r"\.mat"):
        open_images(root, "train")


@pytest.mark.parametrize("label", [10**15, 2**64 - 1, -5])
def test_labels_of_a_table_are_few(tmp_path: Path, encode, label: int) -> None:
    kind = pa.uint64() if label > 0 else pa.int64()
    table = pa.table({"image": [{"bytes": encode(1), "path": None}], "label": pa.array([label], kind)})
    pq.write_table(table, tmp_path / "x.parquet")
    with little_memory(), pytest.raises(DataError, match=r"x\.parquet"):
        open_images(tmp_path / "x.parquet")


def test_rows_that_a_shard_does_not_hold_are_refused(tmp_path: Path) -> None:
    rows = 3_000_000
    table = pa.table({"image": pa.nulls(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: the number of rows, 3,000,000, claims"):
        open_images(tmp_path / "x.parquet")


def test_a_text_that_many_rows_share_is_held_once(tmp_path: Path, encode) -> None:
    rows = 500
    images = pa.array([{"bytes": encode(n), "path": None} for n in range(rows)])
    table = pa.table({"image": images, "label": pa.array(["x" * 100_000] * rows)})
    pq.write_table(table, tmp_path / "x.parquet")
    with little_memory(10e6):
        dataset = open_images(tmp_path / "x.parquet")
    assert dataset.classnames == ["x" * 100_000]
    assert (dataset.labels == 0).all()

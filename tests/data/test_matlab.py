from __future__ import annotations

import base64
import contextlib
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.data import DataError
from patchsae.data.matlab import read_mat

from .mat_files import mat_file

# {"annotations": [{bbox_x1, bbox_x2, fname, class}, ...], "extra": 2 x 3} as scipy.io.savemat writes it.
SCIPY = """
TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMTQ6Mzc6NDQgMjAyNgAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAjgAAAHic42NgYKhgYmBgA9IcQAxkggErlM8IFQPR3ECc
mJeXX5JYkpmfVwxVxwJXpwDESUn5FfEVhlDaiCEtLzE3FSienJNYDNLBB8QWDAj7+LDYB8MgwAMV54LyydUvgqTfAUk/Cxb9nEj6BaB8AyAw1M
sqSKfQHcwU6mekUD8Tkn5yw8GICuGgAxUAAAAoGHEPAAAAOwAAAHic42NgYMgAYjYg5oDSIMAK5TMBMTMQM0LFUitKihKBNCcQGzCgAw4HCP3B
HkILQPkMUFrEAQACJAVb
"""


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_texts_cells_and_structs_come_back(tmp_path, compressed, order):
    variables = {
        "labels": np.array([[3, 1, 2]], np.uint8),
        "table": np.arange(6.0).reshape(2, 3),
        "names": ["kit fox", "Acura é", ""],
        "images": {"fname": ["00001.jpg", "2.jpg"], "class": [np.array([[1]], np.uint8), np.array([[300]], np.uint16)]},
    }
    (tmp_path / "x.mat").write_bytes(mat_file(variables, compressed, order))
    read = read_mat(tmp_path / "x.mat")
    assert list(read) == list(variables)
    np.testing.assert_array_equal(read["labels"], variables["labels"])
    np.testing.assert_array_equal(read["table"], variables["table"])
    assert read["names"] == variables["names"]
    assert [(image["fname"], image["class"].item()) for image in read["images"]] == [("00001.jpg", 1), ("2.jpg", 300)]


def test_a_file_of_another_writer_is_read(tmp_path):
    (tmp_path / "x.mat").write_bytes(base64.b64decode(SCIPY))
    read = read_mat(tmp_path / "x.mat")
    assert [(image["fname"], image["class"].item()) for image in read["annotations"]] == [
        ("00001.jpg", 3),
        ("00002.jpg", 300),
    ]
    np.testing.assert_array_equal(read["extra"], np.arange(6).reshape(2, 3))


def test_other_files_are_named(tmp_path):
    (tmp_path / "x.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF")
    with pytest.raises(DataError, match=r"not a MAT file of level 5 .* it starts b'MATLAB 7\.3"):
        read_mat(tmp_path / "x.mat")


@given(st.data())
def test_a_damaged_file_is_an_error_or_other_values(tmp_path_factory, data):
    """Never a crash, an endless loop or another exception, whatever byte is wrong and wherever the file ends."""
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    content = bytearray(mat_file({"names": ["a", "b"], "images": {"fname": ["1.jpg"]}, "x": np.arange(9.0)}, False))
    at = data.draw(st.integers(128, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(128, len(content)))])
    with contextlib.suppress(DataError):
        read_mat(path)


def test_a_compressed_element_may_not_grow_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("patchsae.data.matlab._MOST_BYTES", 1 << 10)
    packed = zlib.compress(bytes(1 << 12))
    content = mat_file({}) + struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match="compressed elements of more than 1,024 bytes"):
        read_mat(tmp_path / "x.mat")


def test_arrays_within_arrays_end_somewhere(tmp_path):
    nested: object = np.zeros((1, 1), np.uint8)
    for _ in range(40):
        nested = [nested]
    (tmp_path / "x.mat").write_bytes(mat_file({"x": nested}))
    with pytest.raises(DataError, match="more than 16 deep"):
        read_mat(tmp_path / "x.mat")

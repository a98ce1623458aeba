from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.disk import documents

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES)
def test_what_json_writes_is_read(value: object) -> None:
    assert documents.parse_json("file", json.dumps(value)) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON: "),
        (b"", "is not JSON: "),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"[1e999]", "the number 1e999 is out of range"),
        (b"[" + b"9" * 5000 + b"]", "not JSON that can be read"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'"\xff"', "not JSON that can be read"),
    ],
)
def test_other_text_is_refused_by_the_name_of_its_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        documents.read_json(tmp_path / "config.json")
    assert str(refusal.value).startswith(str(tmp_path / "config.json"))


def test_a_document_larger_than_any_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * 101)
    with pytest.raises(ValueError, match="more than 100 bytes of JSON"):
        documents.read_json(tmp_path / "config.json", 100)

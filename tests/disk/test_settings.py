import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.disk import settings

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
tables = st.recursive(
    st.dictionaries(texts, values, max_size=4), lambda t: st.dictionaries(texts, t | values, max_size=4)
)


@given(tables)
def test_toml_round_trip(table):
    assert repr(settings.loads(settings.dumps(table))) == repr(_plain_entries_first(table))


@given(tables)
def test_a_table_does_not_differ_from_itself(table):
    assert settings.differences(table, table) == {}


@given(tables, texts, values)
def test_a_changed_entry_is_the_difference(table, key, value):
    table.pop(key, None)
    changed = table | {key: value}
    assert [new for _, new in settings.differences(table, changed).values()] == [value]
    assert [old for old, _ in settings.differences(changed, table).values()] == [value]


def test_differences_name_nested_keys_and_both_values():
    old = {"lr": 4e-4, "model": {"name": "tiny", "layer": -2}, "topk": True}
    new = {"lr": 4e-4, "model": {"name": "tiny", "layer": -3}, "topk": 1, "k": 32}
    assert settings.differences(old, new) == {"model.layer": (-2, -3), "topk": (True, 1), "k": (None, 32)}


def test_plain_takes_what_configurations_hold():
    @dataclasses.dataclass(frozen=True)
    class Config:
        k: int | None = None
        ks: tuple[int, ...] = (1, 2)
        lr: float = 4e-4

    got = settings.plain({"train": Config(), "images": Path("a/b"), "n": np.int64(3), "nan": math.inf})
    assert got == {"train": {"ks": [1, 2], "lr": 4e-4}, "images": "a/b", "n": 3, "nan": math.inf}


def test_plain_names_the_key_it_cannot_write():
    with pytest.raises(TypeError, match=r"config\.train\.dtype is .*; expected text, a number"):
        settings.plain({"train": {"dtype": object()}})


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("lr = = 3")
    with pytest.raises(ValueError, match=r"config\.toml is not TOML"):
        settings.read(path)


def _plain_entries_first(table):
    """The order in which TOML can hold a table."""
    entries = {k: v for k, v in table.items() if not isinstance(v, dict)}
    return entries | {k: _plain_entries_first(v) for k, v in table.items() if isinstance(v, dict)}

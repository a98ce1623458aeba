from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.paths import OutsidePath, below, is_below

ROOT = Path("/data/pets")


@pytest.mark.parametrize(
    "named", ["cat/1.png", "./a", "a..b", "a/./b", "c:x", "...", "\udce9.png", "-", "a\\b", "a\nb"]
)
def test_what_lies_below_is_taken_as_it_is_written(named: str) -> None:
    assert below(ROOT, named, "list.json") == ROOT / named


@pytest.mark.parametrize("named", ["../a", "/a", "//a", "a/../b", "..", "", ".", "/", "a\0b", "\ud800"])
def test_what_does_not_is_refused_with_the_file_that_says_it(named: str) -> None:
    with pytest.raises(OutsidePath, match="list.json names"):
        below(ROOT, named, "list.json")


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.png", "/", "~"]), max_size=6).map("/".join))
def test_nothing_that_is_taken_leads_out(named: str) -> None:
    if is_below(named):
        lexical = Path(*[part for part in (ROOT / named).parts if part != "."])
        assert ROOT in lexical.parents
        assert ".." not in lexical.parts

"""Law: a path that a file names leads below its folder, whatever it is, or is refused by name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.disk.paths import OutsidePath, below, is_plain, plain_name

ROOT = Path("/data/set")
PIECES = st.one_of(
    st.sampled_from(["..", ".", "", "/", "~", "a", "b.png", "C:", "\\", "\0", "\n"]), st.text(max_size=5)
)


@given(st.lists(PIECES, max_size=6).map("/".join))
def test_what_is_taken_lies_below_the_root(named):
    try:
        found = below(ROOT, named, "list.json")
    except OutsidePath:
        return
    assert ROOT in found.parents
    assert ".." not in found.parts


@pytest.mark.parametrize("named", ["a/b.png", "a b/ü.png", "..a/b..", "-x", "a\nb"])
def test_ordinary_names_are_taken_as_they_are(named):
    assert below(ROOT, named, "list.json") == ROOT / named


@pytest.mark.parametrize("named", ["../a", "a/../../b", "/etc/passwd", "", ".", "a\0", "\ud800"])
def test_others_are_refused(named):
    with pytest.raises(OutsidePath, match=r"list\.json names .*expected a path below /data/set"):
        below(ROOT, named, "list.json")


@given(st.text(max_size=8))
def test_a_plain_name_is_one_visible_component(name):
    if is_plain(name):
        assert plain_name(name) == name == Path(name).name
        assert not name.startswith((".", "-"))
    else:
        with pytest.raises(ValueError, match="expected one path component"):
            plain_name(name)

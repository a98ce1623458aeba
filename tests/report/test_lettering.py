"""Names in plots: never a box, never wider than their room, the whole name at hand."""

import re
import unicodedata
import warnings
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.text import Text

from patchsae.report import figures, lettering, plots
from patchsae.report.panels import recall_panels

LONG = "a very long class name that goes on and on, again and again, until nobody reads it, number "
NAMES = [
    "cat",
    "猫",
    "大白鲨",
    "한국어",
    "שלום",
    "A$AP & <b>",
    f"{LONG}1",
    f"{LONG}2",
    "\U0001f419",
    "é",
]
# Every name that a picture file of these machines may have to spell out
UNKNOWN = "\U00013000"  # a hieroglyph


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(names):
    n = len(names)
    yield plots.class_dots(names, {"unmodified": [0.5] * n, names[-1]: [0.25] * n}, "recall")
    yield plots.heat(np.eye(n), names, names, "correlation")
    yield plots.shared_exclusive_bars(names, [1] * n, [2] * n, [3] * n, (names[0], names[-1]))
    yield recall_panels({f"ranked by {names[0]}\nin {names[-1]}": np.eye(n)}, names, [str(k) for k in range(n)], "k")


@given(st.text(max_size=60), st.integers(8, 30))
def test_a_short_name_fits_and_keeps_both_ends(name, longest):
    shown = lettering.short(name, longest)
    width = sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)
    assert width <= longest
    whole = lettering.clean(name)
    if shown != whole:
        start, end = shown.split("…")[0], shown.split("…")[-1]
        assert whole.startswith(start)
        assert whole.endswith(end)


def test_names_that_look_the_same_are_told_apart():
    shown = lettering.shorts([*NAMES, "crane", "crane", LONG * 2 + "x", LONG * 3 + "x"])
    assert len(set(shown)) == len(shown)
    assert {"crane (1)", "crane (2)"} <= set(shown)


def test_the_browser_draws_the_letters_themselves_and_knows_the_whole_name():
    for figure in drawn([*NAMES, UNKNOWN]):
        markup = figures.svg(figure, "names").markup
        told = [unescape(title) for title in re.findall(r"<title>([^<]*)</title>", markup)]
        texts = [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", markup)]
        for name in NAMES:
            assert lettering.clean(name) in told
        for name in ("cat", "猫", "大白鲨", "한국어", "\U0001f419", "A$AP & <b>"):
            assert name in texts


def test_a_figure_is_the_same_after_drawing():
    for figure in drawn([*NAMES, UNKNOWN]):
        before = [(text.get_text(), text.get_gid()) for text in figure.findobj(Text)]
        figures.svg(figure, "names")
        figures.png(figure)
        after = [(text.get_text(), text.get_gid()) for text in figure.findobj(Text)]
        assert [pair for pair in before if pair[1]] == [pair for pair in after if pair[1]]


def test_a_picture_has_no_box_for_a_letter_that_no_font_has(monkeypatch):
    """matplotlib warns of every box that it draws, and warnings are errors here."""
    monkeypatch.setattr(lettering, "_family", lambda letter: None)
    for figure in drawn(["cat", UNKNOWN]):
        with lettering.for_picture(figure):
            texts = [text.get_text() for text in figure.findobj(Text)]
        assert "U+13000" in texts
        figures.png(figure)
    for figure in drawn([UNKNOWN * 30, "日本語の" * 20]):
        figures.png(figure)


def test_a_font_that_draws_boxes_is_no_font_of_a_letter():
    last_resort = [font for font in font_manager.fontManager.ttflist if font.name.startswith("Last Resort")]
    assert last_resort
    for letter in ("猫", "가", "क", UNKNOWN):
        assert not str(lettering._family(letter)).startswith("Last Resort")


def test_long_names_leave_the_plot_its_room():
    names = [f"{'many words ' * 18}{i}" for i in range(12)]
    for figure in drawn(names):
        figures.png(figure)  # a layout that collapses is warned of
        assert figure.axes[0].get_position().width > 0.25

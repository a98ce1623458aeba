"""Names in plots: shortened with the whole name at hand, and drawn in a font that has their letters.

A report leaves the drawing to the browser. A picture file takes what fonts this machine has, and names a letter by its
code point where none has it; a box would say nothing.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from patchsae.report.text import escape, without_surrogates

FAMILY = "DejaVu Sans"  # comes with matplotlib, so a figure is laid out alike everywhere
LONGEST = 28  # columns of a name; a letter of Chinese, Japanese or Korean takes two
_TAIL = 3  # one in so many columns of a shortened name is its end, where long names differ
_COLUMN = 0.08  # inches of a column of letters
_SAMPLE = 0.5  # inches of a legend's line or mark, and of the room around it
_UNASSIGNED = "\U0003fffd"  # a font that has this draws a box for everything, as matplotlib's "Last Resort" does
_SIZE, _GAP = 8, 7  # points: of the letters, and between them and the axes


def clean(name: str) -> str:
    """A name on one line, without what is no character."""
    printable = (letter if letter.isprintable() else " " for letter in without_surrogates(name))
    return " ".join("".join(printable).split())


def short(name: str, longest: int = LONGEST) -> str:
    """The name, or its start and its end, in at most `longest` columns."""
    name = clean(name)
    if _columns(name) <= longest:
        return name
    tail = (longest - 1) // _TAIL
    return f"{_start(name, longest - 1 - tail)}…{_start(name[::-1], tail)[::-1]}"


def shorts(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Every name shortened; those that look the same are numbered in their order."""
    found = [short(name, longest) for name in names]
    counts, turn = Counter(found), Counter[str]()
    for place, shown in enumerate(found):
        if counts[shown] > 1:
            turn[shown] += 1
            found[place] = f"{short(shown, longest - 5)} ({turn[shown]})"
    return found


def room(names: Sequence[str]) -> float:
    """About how many inches the longest of the names takes, shortened."""
    return _COLUMN * min(LONGEST, max((_columns(clean(name)) for name in names), default=0))


def beside(axes: Axes, names: Sequence[str], first: float = 0.0) -> None:
    """Names of rows, left of the axes; `first`: height of the first one, the others follow at 1."""
    axes.set_yticks([])
    for place, (name, shown) in enumerate(zip(names, shorts(names), strict=True)):
        _name(axes, (0, place + first), axes.get_yaxis_transform(), (-_GAP, 0), name, shown, ha="right", va="center")


def below(axes: Axes, names: Sequence[str], first: float = 0.0, slanted: bool = False) -> None:
    """Names of columns, under the axes, upright or slanted."""
    axes.set_xticks([])
    turned: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "top"}
    if slanted:
        turned = {"rotation": 40, "ha": "right", "va": "top", "rotation_mode": "anchor"}
    for place, (name, shown) in enumerate(zip(names, shorts(names), strict=True)):
        _name(axes, (place + first, 0), axes.get_xaxis_transform(), (0, -_GAP), name, shown, **turned)


def title(axes: Axes, text: str) -> None:
    """A title that may hold names; each of its lines is shortened."""
    text = "\n".join(map(clean, text.split("\n")))
    drawn = axes.set_title("\n".join(short(line, LONGEST - 4) for line in text.split("\n")), parse_math=False)
    drawn.set_gid(text)


def legend(figure: Figure, axes: Axes, columns: int = 6, **look: Any) -> None:
    """The labels of what the axes show, above the plot, in as many columns as there is room for."""
    handles, names = axes.get_legend_handles_labels()
    shown = shorts(names)
    columns = next((n for n in range(columns, 1, -1) if _legend_width(shown, n) <= figure.get_figwidth()), 1)
    drawn = figure.legend(handles, shown, loc="outside upper left", ncols=columns, columnspacing=1.4, **look)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set(parse_math=False, gid=clean(name))


@contextmanager
def for_browser(figure: Figure) -> Iterator[Callable[[str], str]]:
    """Within the block the figure holds stand-ins as wide as its names; what it gives puts the names into its SVG."""
    texts = [text for text in figure.findobj(Text) if text.get_gid() or _missing(text.get_text())]
    names = [(text.get_text(), text.get_gid()) for text in texts]
    for number, text in enumerate(texts):
        text.set(gid=f"name-{number}", text="".join(map(_stand_in, text.get_text())))
    try:
        yield lambda markup: _with_names(markup, names)
    finally:
        for text, (shown, whole) in zip(texts, names, strict=True):
            text.set(gid=whole, text=shown)


@contextmanager
def for_picture(figure: Figure) -> Iterator[None]:
    """Within the block every text has fonts for its letters, or code points in the place of letters."""
    texts = [text for text in figure.findobj(Text) if _missing(text.get_text())]
    before = [(text.get_text(), text.get_fontproperties().copy()) for text in texts]
    for text, (shown, _) in zip(texts, before, strict=True):
        fonts = {letter: _family(letter) for letter in _missing(shown)}
        text.set_fontfamily([FAMILY, *sorted({family for family in fonts.values() if family})])
        unknown = {letter for letter, family in fonts.items() if family is None}
        text.set_text("\n".join(_spelled(line, unknown) for line in shown.split("\n")))
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of fonts that come in one weight
    try:
        yield
    finally:
        log.setLevel(level)
        for text, (shown, font) in zip(texts, before, strict=True):
            text.set(text=shown, fontproperties=font)


def _name(
    axes: Axes,
    place: tuple[float, float],
    transform: Any,
    offset: tuple[int, int],
    name: str,
    shown: str,
    **look: Any,
) -> None:
    """Draw a name; its whole form is the text's group id, which nothing else uses."""
    drawn = axes.annotate(
        shown,
        place,
        xycoords=transform,
        xytext=offset,
        textcoords="offset points",
        annotation_clip=False,
        fontsize=_SIZE,
        parse_math=False,
        **look,
    )
    drawn.set_gid(clean(name))


def _legend_width(names: Sequence[str], columns: int) -> float:
    """Inches of a legend whose columns are filled one after the other."""
    height = -(-len(names) // columns)
    return sum(_SAMPLE + room(names[start : start + height]) for start in range(0, len(names), height))


def _columns(name: str) -> int:
    return sum(map(_width, name))


def _width(letter: str) -> int:
    return 0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _start(name: str, columns: int) -> str:
    """As much of the name as fits."""
    used = 0
    for place, letter in enumerate(name):
        used += _width(letter)
        if used > columns:
            return name[:place]
    return name


def _missing(text: str) -> list[str]:
    """Letters that matplotlib's own font does not have."""
    return [] if text.isascii() else sorted({c for c in text if c != "\n" and not _has(_own_font(), c)})


def _spelled(line: str, unknown: set[str]) -> str:
    """The line with code points for unknown letters, no longer than a name may be."""
    if not unknown.intersection(line):
        return line
    return short("".join(f" U+{ord(c):04X} " if c in unknown else c for c in line), max(LONGEST, _columns(line)))


def _stand_in(letter: str) -> str:
    return {0: "", 1: "n", 2: "W"}[_width(letter)] if _missing(letter) else letter


def _with_names(markup: str, names: Sequence[tuple[str, str | None]]) -> str:
    for number, (shown, whole) in enumerate(names):
        start = markup.find(f'<g id="name-{number}">')
        if start < 0:  # a text outside what is drawn
            continue
        start = markup.index(">", start) + 1
        end = markup.index("</g>", start)
        pieces = re.split(r"(<text[^>]*>)[^<]*", markup[start:end])
        pieces[1::2] = [tag + escape(line) for tag, line in zip(pieces[1::2], shown.split("\n"), strict=True)]
        told = "" if whole is None else f"<title>{escape(whole)}</title>"
        markup = markup[:start] + told + "".join(pieces) + markup[end:]
    return markup


def _has(font: FT2Font, letter: str) -> bool:
    return font.get_char_index(ord(letter)) != 0


@lru_cache
def _own_font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont(FAMILY))


@lru_cache
def _family(letter: str) -> str | None:
    """A family of this machine's fonts that has a letter."""
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if entry.style == "normal" and _covers(entry.fname, letter):
            return entry.name
    return None


@lru_cache(maxsize=4096)
def _covers(path: str, letter: str) -> bool:
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):  # a font that was removed, or that FreeType cannot read
        return False
    return bool(font.scalable) and _has(font, letter) and not _has(font, _UNASSIGNED)

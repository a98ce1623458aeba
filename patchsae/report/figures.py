"""One look for all plots, and figures as SVG that follows the page's light or dark, or as PNG for documents."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from patchsae.report import lettering, ticks
from patchsae.report.text import escape

# Okabe and Ito's colours, safe for colour-blind readers, in the order that keeps neighbours apart in grey as well
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID, PAPER = "#1d2329", "#626c75", "#dfe3e6", "#fefefe"

_DARK = {
    INK: "#e6e8ea",
    MUTED: "#9aa4ad",
    GRID: "#31383f",
    PAPER: "#15181b",
    "#0072b2": "#4aa8e0",
    "#d55e00": "#f07f3c",
    "#009e73": "#2fc598",
    "#cc79a7": "#dd97bd",
    "#e69f00": "#f0b437",
    "#56b4e9": "#8fd0f5",
}
_PNG_DPI = 200  # twice the 100 that a figure's inches are shown at
_PLOT = re.compile(r'<svg class="plot".*?</svg>', re.DOTALL)
_ID = re.compile(r'( id="|href="#|url\(#)')


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The plot style for the length of a block; matplotlib's own settings come back after it."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new(width: float = 7.2, height: float = 3.6) -> Figure:
    """An empty figure of `width` x `height` inches (100 CSS pixels each), outside pyplot."""
    return _Figure(figsize=(width, height), layout="constrained")


class _Figure(Figure):
    """matplotlib draws a figure twice to save it: first for its layout alone, here without the drawing."""

    def draw(self, renderer: RendererBase) -> None:
        engine = self.get_layout_engine()  # a place holder the second time
        if isinstance(engine, ConstrainedLayoutEngine) and self.canvas.is_saving():
            engine.execute(self)
        else:
            super().draw(renderer)


def png(figure: Figure, dpi: int = _PNG_DPI) -> bytes:
    """The figure as PNG on white, for documents: at twice the shown size or `dpi` pixels an inch."""
    buffer = io.BytesIO()
    ticks.settle(figure)
    with style(), lettering.for_picture(figure):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


@dataclass(frozen=True)
class Svg:
    """A figure as an SVG element for HTML: `markup`, without outside references, and its `width` in CSS pixels."""

    markup: str
    width: int


def svg(figure: Figure, alt: str) -> Svg:
    """The figure as SVG whose colours are CSS variables (see `css`), described to screen readers by `alt`.

    The same figure gives the same text. Two figures may hold the same ids: see `number_ids`.
    """
    buffer = io.StringIO()
    ticks.settle(figure)
    with style(), lettering.for_browser(figure) as with_names:
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = with_names(buffer.getvalue())
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None, "matplotlib writes a viewBox"
    body = text[text.index(">", view.end()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = _with_variables(_without_idle_ids(body))
    open_tag = f'<svg class="plot" role="img" aria-label="{escape(alt)}" width="{width}" height="{height}"'
    own_width = f'style="--width:{width}px"'
    return Svg(f'{open_tag} {own_width} viewBox="{view[1]}">{body.strip()}', width)


def number_ids(page: str) -> str:
    """HTML in which every plot of `svg` has ids of its own, in the order of the page."""
    numbers = itertools.count(1)
    return _PLOT.sub(lambda plot: _ID.sub(rf"\g<1>plot:{next(numbers)}-", plot[0]), page)


def css() -> str:
    """The CSS variables of `svg`, for light and dark pages."""
    light = "".join(f"{_variable(color)}:{color};" for color in _DARK)
    dark = "".join(f"{_variable(color)}:{other};" for color, other in _DARK.items())
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": [lettering.FAMILY],
    "font.size": 9,
    "text.color": INK,
    "axes.unicode_minus": False,  # as in tables
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.8,
    "patch.linewidth": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "patchsae",
    "savefig.dpi": _PNG_DPI,
}


def _variable(color: str) -> str:
    return f"--p{color[1:]}"


def _with_variables(body: str) -> str:
    for color in _DARK:
        body = body.replace(color, f"var({_variable(color)})")
    # text follows the page's typeface instead of naming one that the reader may not have
    return re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", body)


def _without_idle_ids(body: str) -> str:
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    return re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)

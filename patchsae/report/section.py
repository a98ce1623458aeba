"""The part of the report that one stage writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from patchsae.report import elements
from patchsae.report.elements import Picture, Row, Tile
from patchsae.report.markup import render
from patchsae.report.text import without_surrogates

if TYPE_CHECKING:
    from patchsae.disk.runs import Stage

FILE = "section"  # .json in the stage's folder


class Section:
    """Collects text, plots, tables and pictures in reading order; `write` leaves them in the stage for `report.build`.

    All text is plain text: it is escaped, and shown as it is.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        """title: heading of the section. lead: a sentence or two on what was done, set larger."""
        self.title = without_surrogates(title)
        self._headings: list[tuple[str, str]] = []  # (anchor, text)
        self._parts: list[Markup] = [render("paragraph", lead, "lead")] if lead else []

    def heading(self, text: str) -> None:
        """Begin a subsection; it appears in the table of contents."""
        anchor = f"{len(self._headings) + 1}"  # within this section: the page puts the stage's name before it
        self._headings.append((anchor, without_surrogates(text)))
        self._parts.append(render("heading", text, 3, anchor))

    def text(self, text: str) -> None:
        """A paragraph; a blank line begins another."""
        self._parts.append(render("paragraph", text))

    def code(self, text: str) -> None:
        """A command or other text set as it is."""
        self._parts.append(render("code", text))

    def facts(self, values: Mapping[str, Any]) -> None:
        """The few numbers that matter, set large: {"accuracy": "68.2 %", "latents": 49152}."""
        self._parts.append(elements.facts(values))

    def figure(self, picture: Figure | Picture | bytes, caption: str, alt: str = "") -> None:
        """A matplotlib Figure, a picture (PIL, or uint8 [H, W, 3]) or the bytes of a PNG file.

        alt: a description for readers who cannot see it; the caption where left out.
        """
        self._parts.append(elements.figure(picture, caption, alt))

    def table(self, columns: Mapping[str, Sequence[Any] | np.ndarray], caption: str) -> None:
        """Named columns of equal length."""
        self._parts.append(elements.table(columns, caption))

    def gallery(self, items: Sequence[Tile | tuple[Picture, str]], caption: str = "") -> None:
        """Pictures side by side: (picture, caption) pairs, or Tiles with heatmaps."""
        tiles = [item if isinstance(item, Tile) else Tile(*item) for item in items]
        self._parts.append(elements.gallery(tiles, caption))

    def galleries(self, rows: Sequence[Row], shown: int = 12) -> None:
        """Latents (or classes) with statistics and reference images; rows after the first `shown` fold away."""
        self._parts.append(elements.galleries(rows, shown))

    def details(self, summary: str, inner: Section) -> None:
        """The content of another section, folded away under `summary` (headings in it stay out of the contents)."""
        self._parts.append(render("details", summary, Markup(inner.html)))

    @property
    def html(self) -> str:
        """The section's HTML, without its title."""
        return "\n".join(self._parts)

    def write(self, stage: Stage) -> Path:
        """Leave the section in the stage, which must have been begun."""
        content = {"title": self.title, "headings": self._headings, "html": self.html}
        return stage.save_json(FILE, content)

"""Figures that are made but not drawn: matplotlib's drawing is most of the time of a small experiment.

A conftest that imports both fixtures leaves drawing out of the bodies of its tests. What several tests share is drawn,
once, as are the runs of the command line (`tests.cli`, the README's), and `tests/report` holds what is drawn to laws.
"""

from __future__ import annotations

import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from patchsae.report import figures
from patchsae.report.text import escape


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "svg", empty_svg)
        monkeypatch.setattr(figures, "png", empty_png)


@pytest.fixture
def drawn() -> None:
    """Asked for by a test that looks at its figures."""


def empty_svg(figure: Figure, alt: str) -> figures.Svg:
    width = round(100 * figure.get_size_inches()[0])
    return figures.Svg(f'<svg class="plot" role="img" aria-label="{escape(alt)}" width="{width}"></svg>', width)


def empty_png(figure: Figure, dpi: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()

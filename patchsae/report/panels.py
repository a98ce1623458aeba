"""Small multiples: matrices side by side on one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from patchsae.report import figures, lettering
from patchsae.report.plots import plain, sequential

_ROW = 0.2  # inches of one row
_PANEL = 1.75  # inches of one panel, at least
_TITLE = 1.25  # how much wider the letters of a title are than those of other names
_BESIDE, _BELOW = 0.9, 1.4  # inches beside the panels and the names of the rows, and above and below them


def recall_panels(panels: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str], label: str) -> Figure:
    """Shares in [0, 1], one matrix [len(rows), len(columns)] per panel, on one scale from 0 to 1; NaN stays empty.

    panels: title -> matrix; a title may hold a line break. columns: numbers; label: of what.
    """
    for title, matrix in panels.items():
        if matrix.shape != (len(rows), len(columns)):
            raise ValueError(f"panel {title!r} has shape {matrix.shape}; expected {(len(rows), len(columns))}")
    panel = max(_PANEL, _TITLE * lettering.room([line for title in panels for line in title.split("\n")]))
    with figures.style():
        figure = figures.new(_BESIDE + lettering.room(rows) + panel * len(panels), _BELOW + _ROW * len(rows))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, matrix) in zip(grid, panels.items(), strict=True):
            shown = np.ma.masked_invalid(matrix)
            image = axes.pcolormesh(shown, cmap=sequential(), norm=Normalize(0, 1), rasterized=True)
            axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90)
            lettering.title(axes, title)
            axes.set_xlabel(plain(label))
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        lettering.beside(grid[0], rows, 0.5)
        grid[0].invert_yaxis()
        percent = PercentFormatter(1, decimals=0)
        bar = figure.colorbar(image, ax=grid, label="recall", aspect=28, pad=0.02, format=percent)
        bar.outline.set_visible(False)
    return figure

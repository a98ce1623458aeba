"""The plots of the reports. Each returns a matplotlib Figure that nobody else knows of (no pyplot, no state)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from patchsae import words
from patchsae.report import figures, lettering, ticks
from patchsae.report.figures import GRID, INK, MUTED, PAPER, SERIES

TRAINING_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("mse", "l1", "ghost")),
    ("Active latents per token (L0)", ("l0",)),
    ("Explained variance", ("explained_variance",)),
    ("Share of dead latents", ("dead",)),
)

_MARKERS = ("o", "s", "D", "^", "v", "P")
_ROW_HEIGHT = 0.24  # inches for one class in a bar chart, and at least of a heat chart
_HEAT_ROW, _CELL, _WIDEST = 0.32, 0.5, 6.6  # inches of a heat chart: at most of a row and a column, and of all columns
_MARKER = 6.5  # points of the first series
_HEADROOM = 1.15  # from the highest accuracy to the end of the axis
_LOG_DEPTH = 1e-4  # of the largest value: the bottom of a log axis
_ANNOTATED = 14  # a heat chart with at most so many columns has its numbers written in


def frequency_scatter(frequency: np.ndarray, mean_activation: np.ndarray, entropy: np.ndarray | None = None) -> Figure:
    """log10 frequency against log10 mean activation of every latent that fired, coloured by label entropy.

    frequency: float [S], share of images in which the latent is active; 0 = never fired, left out (see `never_fired`).
    mean_activation: float [S], mean over its active images.
    entropy: float [S] in nats, NaN where undefined (drawn grey).
    """
    frequency, mean = (np.asarray(values, np.float64) for values in (frequency, mean_activation))
    if frequency.ndim != 1 or mean.shape != frequency.shape or (entropy is not None and len(entropy) != len(frequency)):
        raise ValueError(f"frequency {frequency.shape}, mean_activation {mean.shape} and entropy must all be [S]")
    fired = (frequency > 0) & (mean > 0)
    x, y = np.log10(frequency[fired]), np.log10(mean[fired])
    with figures.style():
        figure = figures.new(7.2, 4.8)
        grid = figure.add_gridspec(2, 2, width_ratios=(8, 1), height_ratios=(1, 7), wspace=0.02, hspace=0.02)
        axes = figure.add_subplot(grid[1, 0])
        _scatter(figure, axes, x, y, None if entropy is None else np.asarray(entropy, np.float64)[fired])
        axes.set_xlabel("log₁₀ frequency (share of images)")
        axes.set_ylabel("log₁₀ mean activation")
        _margin(figure.add_subplot(grid[0, 0], sharex=axes), x, "vertical")
        _margin(figure.add_subplot(grid[1, 1], sharey=axes), y, "horizontal")
    return figure


def never_fired(frequency: np.ndarray) -> str:
    """The sentence that goes with `frequency_scatter`: how many latents it shows and how many never fired."""
    total, silent = len(frequency), int(np.count_nonzero(np.asarray(frequency) <= 0))
    if silent == 0:
        return f"All {total:,} latents fired."
    share = words.percent(silent / total)
    return f"{total - silent:,} of {total:,} latents are shown; {silent:,} ({share}) never fired."


def sweep_curves(
    ks: Sequence[int],
    on: Mapping[str, Sequence[float]],
    off: Mapping[str, Sequence[float]],
    unmodified: float,
    chance: float | None = None,
    reconstructed: float | None = None,
) -> Figure:
    """Accuracy against the number k of latents kept (left) and ablated (right), one line per ranking.

    ks: ascending, positive. on, off: ranking name -> accuracy in [0, 1] for every k; both panels share the scale,
    which ends at 100 % unless every accuracy is low.
    unmodified: accuracy of the model as it is; reconstructed: with all latents kept; chance: 1 / number of classes.
    """
    with figures.style():
        figure = figures.new(7.6, 3.5)
        keep, ablate = figure.subplots(1, 2, sharey=True)
        for axes, curves, title in ((keep, on, "Keep only the top k"), (ablate, off, "Ablate the top k")):
            _reference_line(axes, unmodified, "unmodified", INK, "-")
            if reconstructed is not None:
                _reference_line(axes, reconstructed, "all latents kept", MUTED, "--")
            if chance is not None:
                _reference_line(axes, chance, "chance", MUTED, ":")
            for i, (name, accuracy) in enumerate(curves.items()):
                _check_length(f"accuracy of {name!r}", accuracy, len(ks))
                axes.plot(ks, accuracy, label=name, **_line_look(i), clip_on=False, zorder=3 + len(curves) - i)
            axes.set_xscale("log")
            axes.set_title(title)
            axes.set_xlabel("k (latents)")
        heights = [unmodified, *(accuracy for curves in (on, off) for line in curves.values() for accuracy in line)]
        keep.set_ylim(0, min(1, _HEADROOM * max(heights) if max(heights) > 0 else 1))
        keep.yaxis.set_major_formatter(PercentFormatter(1))
        keep.set_ylabel("accuracy")
        lettering.legend(figure, keep)
    return figure


def training_curves(
    rows: Sequence[Mapping[str, Any]],
    x: str = "step",
    panels: Sequence[tuple[str, Sequence[str]]] = TRAINING_PANELS,
) -> Figure:
    """Small multiples of metrics.jsonl rows against `x`; panels: (title, keys). Absent keys and panels are left out.

    Several keys in one panel share a log axis where all their values are positive or zero.
    """
    present = {key for row in rows for key, value in row.items() if value is not None}
    shown = [(title, [key for key in keys if key in present]) for title, keys in panels]
    shown = [(title, keys) for title, keys in shown if keys]
    if not shown:
        raise ValueError(
            f"rows hold none of {[key for _, keys in panels for key in keys]}; they hold {sorted(present)}"
        )
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    with figures.style():
        figure = figures.new(7.6, 0.4 + 2.1 * lines)
        figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.08)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (title, keys) in zip(grid, shown, strict=False):
            _curves(axes, rows, x, keys)
            axes.set_title(plain(title))
            ticks.whole(axes.xaxis)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        for axes in grid[max(0, len(shown) - columns) : len(shown)]:
            axes.set_xlabel(plain(x))
    return figure


def histogram(values: np.ndarray, label: str, bins: int = 40, log: bool = False) -> Figure:
    """How many latents (or tokens, images) have which value. log: logarithmic bins, for positive values only."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite) & (finite > 0 if log else True)]
    with figures.style():
        figure = figures.new(6.4, 2.6)
        axes = figure.subplots()
        if finite.size:
            low, high = float(finite.min()), float(finite.max())
            end = high if high > low else low + (abs(low) or 1)  # one value is drawn from there on, never on both sides
            edges = np.geomspace(low, end, bins + 1) if log else np.linspace(low, end, bins + 1)
            axes.hist(finite, bins=edges.tolist(), color=SERIES[0], edgecolor=PAPER, linewidth=0.6)
        if log:
            axes.set_xscale("log")
        axes.grid(axis="x", visible=False)
        ticks.whole(axes.yaxis)
        axes.set_xlabel(plain(label))
        axes.set_ylabel("count")
    return figure


def class_dots(names: Sequence[str], series: Mapping[str, Sequence[float]], label: str, percent: bool = True) -> Figure:
    """One row per class, one dot per series on a common scale (recall unmodified, top 10 kept, ...)."""
    with figures.style():
        figure = figures.new(7.2, 0.9 + _ROW_HEIGHT * len(names))
        axes = figure.subplots()
        rows = np.arange(len(names))
        for name, values in series.items():
            _check_length(name, values, len(names))
        table = np.asarray(list(series.values()), np.float64)
        axes.hlines(rows, table.min(0), table.max(0), color=GRID, linewidth=3, zorder=1)
        for i, (name, values) in enumerate(series.items()):
            axes.plot(
                values,
                rows,
                _MARKERS[i % len(_MARKERS)],
                color=SERIES[i % len(SERIES)],
                markersize=_MARKER - i,  # so that equal values hide no series
                label=name,
                clip_on=False,
            )
        _class_axis(axes, names)
        axes.set_xlabel(plain(label))
        if percent:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        elif bool((table[np.isfinite(table)] % 1 == 0).all()):
            ticks.whole(axes.xaxis)
        lettering.legend(figure, axes)
    return figure


def shared_exclusive_bars(
    names: Sequence[str],
    shared: Sequence[float],
    only_a: Sequence[float],
    only_b: Sequence[float],
    labels: tuple[str, str] = ("first", "second"),
) -> Figure:
    """Per class: how many top latents only the first model (or dataset) has, both have, only the second has.

    Bars are centred on the shared part, so that a drift to either side is seen at once.
    """
    parts = [np.asarray(values, np.float64) for values in (only_a, shared, only_b)]
    for values, name in zip(parts, ("only_a", "shared", "only_b"), strict=True):
        _check_length(name, values, len(names))
    first, middle = parts[:2]
    lefts = (-middle / 2 - first, -middle / 2, middle / 2)
    only = [f"only {label}" for label in labels]
    looks = ((only[0], SERIES[1]), ("shared", GRID), (only[1], SERIES[0]))
    with figures.style():
        figure = figures.new(7.2, 0.9 + _ROW_HEIGHT * len(names))
        axes = figure.subplots()
        for width, left, (label, color) in zip(parts, lefts, looks, strict=True):
            bars = axes.barh(np.arange(len(names)), width, left=left, height=0.72, color=color, label=label)
            texts = [words.number(value) if value else "" for value in width]
            axes.bar_label(bars, texts, label_type="center", fontsize=7.5, color=MUTED if color == GRID else PAPER)
        _class_axis(axes, names)
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        lettering.legend(figure, axes)
    return figure


def heat(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str) -> Figure:
    """A matrix [len(rows), len(columns)] as colours, numbers written in where they fit (correlations, counts)."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (len(rows), len(columns)):
        raise ValueError(f"matrix has shape {matrix.shape}; expected [rows, columns] = {(len(rows), len(columns))}")
    with figures.style():
        cell = min(_CELL, _WIDEST / len(columns))  # inches
        row = max(_ROW_HEIGHT if len(rows) > len(columns) else 0, min(_HEAT_ROW, cell))
        figure = figures.new(
            1.4 + lettering.room(rows) + cell * len(columns), 0.4 + lettering.room(columns) + row * len(rows)
        )
        axes = figure.subplots()
        finite = matrix[np.isfinite(matrix)]
        norm = Normalize(*((finite.min(), finite.max()) if finite.size else (0, 1)))
        small = len(columns) <= _ANNOTATED
        gaps: dict[str, Any] = {"edgecolors": PAPER, "linewidth": 1.2} if small else {"rasterized": True}
        image = axes.pcolormesh(np.ma.masked_invalid(matrix), cmap=sequential(), norm=norm, **gaps)
        axes.invert_yaxis()
        lettering.below(axes, columns, 0.5, slanted=small)
        lettering.beside(axes, rows, 0.5)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        whole = bool((finite % 1 == 0).all())
        if small:
            _write_numbers(axes, matrix, norm, whole)
        bar = figure.colorbar(image, ax=axes, label=plain(label), aspect=28, pad=0.02)
        bar.outline.set_visible(False)
        if whole:
            ticks.whole(bar.ax.yaxis)
    return figure


def _scatter(figure: Figure, axes: Axes, x: np.ndarray, y: np.ndarray, entropy: np.ndarray | None) -> None:
    size = float(np.clip(4e4 / max(len(x), 1), 3, 18))
    look: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}
    if entropy is None:
        axes.scatter(x, y, color=SERIES[0], alpha=0.5, **look)
        return
    known = np.isfinite(entropy)
    axes.scatter(x[~known], y[~known], color=MUTED, alpha=0.35, **look)
    # High entropy first: the rare class-specific latents end up on top
    order = np.argsort(-entropy[known], kind="stable")
    top = float(entropy[known].max()) if known.any() else 1.0
    points = axes.scatter(
        x[known][order],
        y[known][order],
        c=entropy[known][order],
        cmap="viridis",
        vmin=0,
        vmax=top or 1.0,
        alpha=0.8,
        **look,
    )
    bar = figure.colorbar(points, ax=axes, location="left", label="label entropy (nats)", aspect=28, pad=0.02)
    bar.outline.set_visible(False)
    bar.solids.set(alpha=1, rasterized=True)  # type: ignore[union-attr]


def _margin(axes: Axes, values: np.ndarray, orientation: Any) -> None:
    if values.size:
        axes.hist(values, bins=60, orientation=orientation, color=MUTED, alpha=0.45)
    axes.set_axis_off()


def _curves(axes: Axes, rows: Sequence[Mapping[str, Any]], x: str, keys: Sequence[str]) -> None:
    positive = True
    for i, key in enumerate(keys):
        points = [(row[x], row[key]) for row in rows if row.get(key) is not None and x in row]
        steps, values = np.asarray(points, np.float64).reshape(-1, 2).T
        positive = positive and bool((values >= 0).all()) and bool((values > 0).any())
        axes.plot(steps, values, color=SERIES[i % len(SERIES)], label=plain(key.replace("_", " ")))
    if not axes.dataLim.height and not axes.dataLim.y0:
        axes.set_ylim(0, 1)  # nothing but zeros: no room for what is less
    if len(keys) > 1:
        if positive:
            axes.set_yscale("log")
            # a term that dies out (ghost) must not squeeze the others into a line
            top = max(value for row in rows for key in keys if (value := row.get(key)) is not None)
            axes.set_ylim(bottom=max(axes.get_ylim()[0], top * _LOG_DEPTH))
        axes.legend(loc="best")


def _reference_line(axes: Axes, height: float, label: str, color: str, dashes: str) -> None:
    axes.axhline(height, color=color, linewidth=1, linestyle=dashes, label=label, zorder=2)


def _line_look(i: int) -> dict[str, Any]:
    return {"color": SERIES[i % len(SERIES)], "marker": _MARKERS[i % len(_MARKERS)]}


def _class_axis(axes: Axes, names: Sequence[str]) -> None:
    lettering.beside(axes, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _write_numbers(axes: Axes, matrix: np.ndarray, norm: Normalize, whole: bool) -> None:
    finite = matrix[np.isfinite(matrix)]
    # what is only nearly 1 (a correlation) is not written as 1
    nearly = bool(((np.round(np.abs(finite), 2) == 1) & (np.abs(finite) != 1)).any())
    decimals = 0 if whole else 3 if nearly else 2
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            # By the cell, not by the page: not one of the colours that turn with light and dark
            color = "#f8fafa" if norm(value) > 0.5 else "#10181c"
            text = words.fixed(value, decimals)
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7.5, color=color)


def sequential() -> LinearSegmentedColormap:
    """The colours of a matrix, from light (small) to dark (large)."""
    return LinearSegmentedColormap.from_list("patchsae", ["#e9f1f3", "#a6cdd3", "#4f9dab", "#14667a", "#06303f"])


def plain(text: str) -> str:
    """A dollar sign in a class name is no mathematics."""
    return text.replace("$", r"\$")


def _check_length(name: str, values: Sequence[float] | np.ndarray, expected: int) -> None:
    if len(values) != expected:
        raise ValueError(f"{name} has {len(values)} values; expected {expected}")

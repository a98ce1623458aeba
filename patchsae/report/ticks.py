"""Tick labels that are distinct and true: whole numbers of what is whole, else as many digits as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from patchsae import words

_SLACK = 1e-3  # of the distance of two ticks, by which a label may be off
_DECIMALS = 5  # more of them, or numbers of a million and more, are written with an exponent
_DECADES = 2.0  # a logarithmic axis shorter than this has ticks at 2 and 5 as well


class _Whole(MaxNLocator):
    """matplotlib's own gives up whole numbers where fewer than one fits."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        whole: list[float] = np.unique(np.round(super().tick_values(vmin, vmax))).tolist()
        return whole


class Ticks(Formatter):
    """Labels with one number of decimals on a linear axis, each with its own digits on a logarithmic one."""

    def __init__(self, logarithmic: bool) -> None:
        self._logarithmic = logarithmic

    def __call__(self, x: float, pos: int | None = None) -> str:
        return tick_labels([x], logarithmic=True)[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        return tick_labels(values, logarithmic=self._logarithmic)


def tick_labels(values: Sequence[float], logarithmic: bool = False) -> list[str]:
    """The labels of ascending ticks."""
    if logarithmic:
        return [words.number(float(f"{value:.4g}")) for value in values]
    step = min((b - a for a, b in pairwise(values) if b > a), default=abs(values[0]) if len(values) else 0.0)
    for decimals in range(_DECIMALS + 1):
        if all(abs(round(value, decimals) - value) <= _SLACK * step for value in values):
            return [words.fixed(value, decimals) for value in values]
    digits = next(n for n in range(1, 18) if all(abs(float(f"{v:.{n}g}") - v) <= _SLACK * step for v in values))
    return [f"{value:.{digits}g}" for value in values]


def whole(axis: Axis) -> None:
    """Ticks of a count at whole numbers alone."""
    axis.set_major_locator(_Whole("auto", steps=[1, 2, 5, 10], integer=True))


def settle(figure: Figure) -> None:
    """Give every axis of a figure, as far as it has matplotlib's own labels, those of this module."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), ScalarFormatter | LogFormatter):
                axis.set_major_formatter(Ticks(axis.get_scale() == "log"))
            if axis.get_scale() == "log":
                _logarithmic(axis)


def _logarithmic(axis: Axis) -> None:
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < low * 10**_DECADES else (1,)))
    axis.set_minor_formatter(NullFormatter())

"""Tick labels: distinct and true whatever the range, whole where the quantity is."""

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.report import figures, plots, ticks
from tests.examples import examples


def labels(axis):
    """The tick labels of an axis as drawn, those outside its view left out."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    locations = axis.get_major_locator()()
    shown = axis.get_major_formatter().format_ticks(locations)
    inside = [low - slack <= value <= high + slack for value in locations]
    return [(value, label) for value, label, there in zip(locations, shown, inside, strict=True) if there]


def read(label):
    return float(label.replace(",", ""))


@examples(50)
@given(
    st.floats(-1e6, 1e6),
    st.sampled_from([1e-9, 1e-5, 0.001, 0.3, 1, 2, 3, 7, 25, 1e3, 1e8]),
    st.booleans(),
)
def test_ticks_are_distinct_and_true(low, span, whole):
    if span < 1e-6 * abs(low):  # no float is written with so many digits
        low = 0.0
    figure = figures.new()
    axes = figure.subplots()
    axes.set_xlim(low, low + span)
    if whole:
        ticks.whole(axes.xaxis)
    ticks.settle(figure)
    found = labels(axes.xaxis)
    texts = [label for _, label in found]
    assert len(set(texts)) == len(texts)
    for value, label in found:
        assert read(label) == pytest.approx(value, abs=1e-2 * span)
        if whole:
            assert read(label) == round(value)


@pytest.mark.parametrize(("low", "high"), [(1, 1024), (0.02, 0.05), (0.31, 0.39), (1e-7, 3), (3, 30)])
def test_a_logarithmic_axis_has_labels_that_are_true(low, high):
    figure = figures.new()
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks.settle(figure)
    found = labels(axes.xaxis)
    assert len(found) >= 2
    for value, label in found:
        assert read(label) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("steps", [[1, 2], [1, 2, 3], [1], [0, 500]])
def test_steps_of_a_short_training_are_whole(steps):
    figure = plots.training_curves([{"step": step, "mse": 0.5, "l0": 3.0} for step in steps])
    figures.svg(figure, "training")
    for axes in figure.axes:
        texts = [label for _, label in labels(axes.xaxis)]
        assert texts
        assert len(set(texts)) == len(texts)
        assert all(label.replace(",", "").lstrip("-").isdigit() for label in texts)


@pytest.mark.parametrize("draw", ["histogram", "dots", "heat"])
def test_counts_have_whole_ticks(draw):
    counts = np.array([0, 1, 2])
    if draw == "histogram":
        figure, axis = plots.histogram(counts, "value"), lambda f: f.axes[0].yaxis
    elif draw == "dots":
        figure = plots.class_dots(["a", "b"], {"high": [0, 1], "low": [2, 0]}, "latents", percent=False)
        axis = lambda f: f.axes[0].xaxis  # noqa: E731
    else:
        figure = plots.heat(counts[None], ["a"], ["x", "y", "z"], "shared")
        axis = lambda f: f.axes[1].yaxis  # noqa: E731
    figures.png(figure)
    found = labels(axis(figure))
    assert found
    assert all(value == read(label) == round(value) for value, label in found)


def test_no_axis_hides_an_offset_in_a_corner():
    figure = figures.new()
    figure.subplots().plot([0, 1], [1e-6, 1.5e-6])
    markup = figures.svg(figure, "small").markup
    assert "1e-06" in markup
    assert matplotlib.rcParams["axes.unicode_minus"]  # the style does not leak

import subprocess
import sys
import warnings
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from patchsae.report import figures, plots
from patchsae.report.panels import recall_panels
from tests.examples import examples

KS = [1, 10, 100, 1000]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(figure):
    """The figure as SVG: whatever fails in drawing fails here."""
    return figures.svg(figure, "a plot").markup


def all_plots():
    rng = np.random.default_rng(0)
    names = ["cat", r"A$AP \frac & $1", "<dog>"]
    rows = [{"step": i, "mse": 1 / (i + 1), "l1": 0.1, "ghost": 0.0, "l0": 12, "dead": None} for i in range(5)]
    return {
        "scatter": plots.frequency_scatter(rng.random(50), rng.random(50) + 0.1, rng.random(50)),
        "sweep": plots.sweep_curves(
            KS, {"$class$": [0.1, 0.2, 0.5, 0.6]}, {"$class$": [0.6, 0.5, 0.2, 0.1]}, 0.7, 0.1, 0.65
        ),
        "training": plots.training_curves(rows),
        "histogram": plots.histogram(rng.random(50), "value", log=True),
        "dots": plots.class_dots(names, {"unmodified": [0.5, 0.6, 0.7], "top 10": [0.4, 0.2, 0.9]}, "recall"),
        "bars": plots.shared_exclusive_bars(names, [3, 4, 5], [1, 0, 2], [2, 2, 0], ("CLIP", "MaPLe")),
        "heat": plots.heat(np.asarray([[1, np.nan, 0.5]] * 3), names, names, "correlation"),
        "panels": recall_panels({r"$one$": np.eye(3), "two": np.full((3, 3), np.nan)}, names, ["1", "2", "3"], "k"),
    }


@pytest.mark.slow
def test_every_plot_draws_and_leaves_no_state():
    before = dict(matplotlib.rcParams)
    for name, figure in all_plots().items():
        assert drawn(figure).startswith("<svg"), name
        assert figures.png(figure).startswith(b"\x89PNG"), name
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scatter", "sweep", "heat"])
def test_what_is_saved_is_what_matplotlib_saves_when_it_draws_for_the_layout_as_well(name):
    ours, plain = (all_plots()[name] for _ in range(2))
    plain.__class__ = Figure
    assert drawn(ours) == drawn(plain)
    assert figures.png(ours) == figures.png(plain)


def test_a_figure_that_is_shown_and_not_saved_is_drawn():
    canvas = FigureCanvasAgg(plots.histogram([1.0, 2.0], "value"))
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba()).any()


def test_the_same_data_gives_the_same_svg():
    first, second = (drawn(plots.class_dots(["a", "b"], {"recall": [0.1, 0.2]}, "recall")) for _ in range(2))
    assert first == second


def test_pyplot_stays_out():
    code = (
        "import sys, patchsae.report.plots as p; p.histogram([1.0], 'x'); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@examples(10)
@given(st.data(), st.integers(0, 30))
def test_the_scatter_shows_exactly_the_latents_that_fired(data, latents):
    frequency = data.draw(hnp.arrays(np.float64, latents, elements=st.sampled_from([0, 1e-5, 0.01, 1.0])))
    entropy = data.draw(hnp.arrays(np.float64, latents, elements=st.sampled_from([np.nan, 0.0, 2.3])))
    mean = np.where(frequency > 0, 0.5, 0.0)
    figure = plots.frequency_scatter(frequency, mean, entropy)
    shown = np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[0].collections])
    np.testing.assert_allclose(np.sort(shown[:, 0]), np.sort(np.log10(frequency[frequency > 0])))
    assert np.isfinite(shown).all()


def test_never_fired_latents_are_counted():
    assert plots.never_fired(np.array([0.1, 0.2])) == "All 2 latents fired."
    assert plots.never_fired(np.array([0, 0, 0.1, 0.2])) == "2 of 4 latents are shown; 2 (50.0%) never fired."


def test_sweep_lines_are_the_data():
    on = {"class": [0.1, 0.3, 0.5, 0.6], "random": [0.1, 0.1, 0.2, 0.6]}
    off = {name: values[::-1] for name, values in on.items()}
    figure = plots.sweep_curves(KS, on, off, unmodified=0.7, chance=0.1)
    for axes, curves in zip(figure.axes, (on, off), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        assert axes.get_xscale() == "log"
        for name, values in curves.items():
            np.testing.assert_array_equal(lines[name].get_xydata(), np.column_stack([KS, values]))
        assert set(lines["unmodified"].get_ydata()) == {0.7}
        assert set(lines["chance"].get_ydata()) == {0.1}
    with pytest.raises(ValueError, match="accuracy of 'class' has 1 values; expected 4"):
        plots.sweep_curves(KS, {"class": [0.1]}, {}, 0.7)


def test_training_curves_leave_out_what_is_not_there():
    rows = [{"step": 0, "mse": 0.5, "l0": None}, {"step": 10, "mse": 0.25}, {"step": 20, "mse": None}]
    figure = plots.training_curves(rows)
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 0.5], [10, 0.25]])
    with pytest.raises(ValueError, match=r"rows hold none of .* they hold \['loss', 'step'\]"):
        plots.training_curves([{"step": 0, "loss": 1.0}])


def test_a_curve_of_zeros_has_no_room_below_it():
    rows = [{"step": i, "dead": 0.0, "explained_variance": -0.5, "mse": 0.25} for i in range(3)]
    limits = {axes.get_title("left"): axes.get_ylim() for axes in plots.training_curves(rows).axes}
    assert limits["Share of dead latents"] == (0, 1)
    assert limits["Explained variance"][0] < -0.5 < limits["Explained variance"][1]


def test_shared_bars_are_as_long_as_their_numbers():
    figure = plots.shared_exclusive_bars(["a", "b"], [4, 0], [1, 2], [3, 5])
    widths = [[bar.get_width() for bar in container] for container in figure.axes[0].containers]
    assert widths == [[1, 2], [4, 0], [3, 5]]
    ends = [[bar.get_x() + bar.get_width() for bar in container] for container in figure.axes[0].containers]
    starts = [[bar.get_x() for bar in container] for container in figure.axes[0].containers]
    assert starts[1:] == ends[:-1]


@pytest.mark.parametrize(
    ("row", "texts"),
    [([1, 0.25], ["1.00", "0.25"]), ([1, 0.9983], ["1.000", "0.998"]), ([3, 12], ["3", "12"]), ([-0.001, 0.5], None)],
)
def test_the_numbers_of_a_heat_chart_are_true(row, texts):
    written = [text.get_text() for text in plots.heat(np.array([row]), ["a"], ["x", "y"], "c").axes[0].texts]
    assert written[3:] == (texts or ["0.00", "0.50"])  # after the names


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 2\); expected \[rows, columns\] = \(2, 1\)"):
        plots.heat(np.zeros((2, 2)), ["a", "b"], ["c"], "x")
    with pytest.raises(ValueError, match=r"panel 'p' has shape \(2, 2\); expected \(2, 1\)"):
        recall_panels({"p": np.zeros((2, 2))}, ["a", "b"], ["c"], "x")
    with pytest.raises(ValueError, match=r"must all be \[S\]"):
        plots.frequency_scatter(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="recall has 1 values; expected 2"):
        plots.class_dots(["a", "b"], {"recall": [0.1]}, "recall")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.25, 7.0])
def test_a_histogram_of_one_value_has_no_room_for_others_below_it(value, log):
    figure = plots.histogram(np.full(5, value), "shift", log=log)
    patches: Any = figure.axes[0].patches
    bars = [bar for bar in patches if bar.get_height() > 0]
    assert len(bars) == (0 if log and value == 0 else 1)
    for bar in bars:
        assert (bar.get_x(), bar.get_height()) == (pytest.approx(value), 5)
        assert min(other.get_x() for other in patches) == pytest.approx(value)


def test_low_accuracies_are_not_pressed_onto_the_axis():
    tops = [
        plots.sweep_curves(KS, {"class": [share] * 4}, {"class": [share] * 4}, share).axes[0].get_ylim()[1]
        for share in (0.005, 0.4, 0.95)
    ]
    assert tops == pytest.approx([0.00575, 0.46, 1.0])


def test_the_words_are_keep_and_ablate():
    titles = [axes.get_title("left") for axes in plots.sweep_curves([1], {}, {}, 0.5).axes]
    assert titles == ["Keep only the top k", "Ablate the top k"]


@pytest.mark.parametrize("empty", [np.zeros(4), np.zeros(0)])
def test_nothing_that_fired_still_draws(empty):
    drawn(plots.frequency_scatter(empty, empty, np.full(len(empty), np.nan)))
    drawn(plots.histogram(empty, "frequency", log=True))

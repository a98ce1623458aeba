"""Correlations of what datasets activate: numpy's, their laws, and which stages they may come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.disk.runs import Run
from patchsae.experiments import compare, correlate, extract
from patchsae.experiments.compare import Side
from patchsae.experiments.compare.options import CompareOptions
from patchsae.experiments.correlate import Activity, correlations
from patchsae.experiments.extract.options import ExtractOptions
from tests.experiments.worlds import make_images, make_sae

vectors = st.lists(st.lists(st.integers(0, 50), min_size=7, max_size=7), min_size=2, max_size=4)


@given(vectors)
def test_agree_with_numpy(counts) -> None:
    found = correlations([torch.tensor(row) for row in counts]).numpy()
    constant = np.array([len(set(row)) == 1 for row in counts])
    undefined = constant[:, None] | constant[None]
    assert np.array_equal(np.isnan(found), undefined)
    varied = np.asarray(counts)[~constant]
    if len(varied):
        expected = np.atleast_2d(np.corrcoef(varied))
        np.testing.assert_allclose(found[~constant][:, ~constant], expected, atol=1e-12)


@given(vectors, st.integers(2, 9))
def test_more_images_of_the_same_kind_change_nothing(counts, factor) -> None:
    once, more = ([torch.tensor(row) * times for row in counts] for times in (1, factor))
    torch.testing.assert_close(correlations(once), correlations(more), equal_nan=True)


@given(st.lists(st.integers(0, 10**6), min_size=7, max_size=7).filter(lambda row: len(set(row)) > 1))
def test_what_is_compared_with_itself_correlates_exactly(row) -> None:
    assert correlations([torch.tensor(row), torch.tensor(row[::-1])]).diagonal().tolist() == [1.0, 1.0]


@pytest.fixture(scope="module")
def run(clip, other_clip, sae, tmp_path_factory) -> Run:
    """Two extractions and a comparison, and an extraction with another autoencoder."""
    run = Run(tmp_path_factory.mktemp("runs"))
    options = ExtractOptions(show_latents=0)
    for name, seed in (("first", 0), ("second", 5)):
        extract.run(clip, sae, make_images(6, seed=seed), run.stage(name), options)
    extract.run(clip, make_sae(seed=1), make_images(6), run.stage("stranger"), options)
    first, second = (Side(name, model, make_images(6)) for name, model in (("before", clip), ("after", other_clip)))
    chosen = CompareOptions(show_latents=0, templates=("a {}.",))
    compare.run(first, second, sae, run.stage("compare"), chosen)
    return run


@pytest.mark.usefixtures("drawn")
def test_extractions_and_comparisons_stand_side_by_side(run) -> None:
    found = [a for name in ("first", "second", "compare") for a in correlate.activities(run.stage(name))]
    names = ["first", "second", "compare: before", "compare: after"]
    assert [activity.name for activity in found] == names
    stage = run.stage("correlate")
    matrix = correlate.run(found, stage)
    assert matrix[0, 2] == pytest.approx(1)  # the same images in the same model
    assert float(matrix[0, 3]) < 0.99
    table = stage.read_table("correlation.csv")
    assert table["name"] == names
    for column, name in enumerate(names):
        np.testing.assert_allclose(table[name], matrix[:, column].numpy())
    assert (stage.path / "correlation.png").read_bytes().startswith(b"\x89PNG")
    assert "compare: after" in stage.load_json("section")["html"]


def test_what_cannot_be_compared_is_refused(run, tmp_path) -> None:
    (first,) = correlate.activities(run.stage("first"))
    (stranger,) = correlate.activities(run.stage("stranger"))
    stage = Run(tmp_path).stage("correlate")
    for found, message in (
        ([first], "expected at least 2"),
        ([first, first], "'first' occurs twice"),
        ([first, stranger], "another autoencoder"),
        ([first, replace(first, name="other", threshold=0.5)], "above 0.5; expected 0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            correlate.run(found, stage)
    assert not stage.path.exists()


def test_a_stage_of_another_kind_is_refused(tmp_path) -> None:
    stage = Run(tmp_path).stage("mask")
    with stage:
        stage.begin({})
        stage.finish()
    with pytest.raises(ValueError, match="neither an extraction nor a comparison"):
        correlate.activities(stage)


def test_nothing_correlates_with_silence(tmp_path) -> None:
    found = [Activity(name, counts, 0.2, {}) for name, counts in (("a", torch.arange(4)), ("b", torch.zeros(4).long()))]
    stage = Run(tmp_path).stage("correlate")
    correlate.run(found, stage)
    assert stage.read_table("correlation.csv")["b"] == [None, None]

"""The grid of a sweep: which autoencoders it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.cli.choices import Tower
from patchsae.disk.runs import Run
from patchsae.training.config import STRENGTH, TrainConfig
from patchsae.training.sweep.grid import Grid
from patchsae.training.sweep.options import SweepOptions

variants = st.lists(st.sampled_from(sorted(STRENGTH)), min_size=1, max_size=6)
numbers = st.lists(st.integers(1, 40), min_size=1, max_size=3)
shares = st.lists(st.floats(0, 1e38), min_size=1, max_size=3)


@given(variants, numbers, numbers, shares, shares)
def test_a_grid_is_every_combination_once_under_a_name_of_its_own(variants, expansions, k, l1, l0) -> None:
    grid = Grid(variant=tuple(variants), expansion=tuple(expansions), k=tuple(k), l1=tuple(l1), l0=tuple(l0))
    trials = grid.trials([2, 5])
    axes = {"k": k, "l1": l1, "l0": l0}
    expected = {
        (layer, variant, expansion, value)
        for layer in (2, 5)
        for variant in variants
        for expansion in expansions
        for value in axes[STRENGTH[variant]]
    }
    found = [(c.layer, c.config.variant, c.config.expansion, c.strength[1]) for c in trials]
    assert len(found) == len(expected)
    assert set(found) == expected
    assert len({trial.name for trial in trials}) == len(trials)
    for trial in trials:
        Run("runs").stage(trial.name)  # a folder's name


def test_what_is_not_swept_is_the_same_for_all() -> None:
    trials = Grid(variant=("relu", "topk"), k=(4, 8), lr=0.5, total_images=7).trials([0])
    assert trials[0].config == TrainConfig(lr=0.5, total_images=7)
    assert trials[2].config == TrainConfig(variant="topk", k=8, lr=0.5, total_images=7)
    assert [trial.name for trial in trials] == ["relu-l1-8e-05-x64-block0", "topk-k4-x64-block0", "topk-k8-x64-block0"]


def test_blocks_are_counted_as_python_counts() -> None:
    assert Tower().blocks(12, default=10) == [10]
    assert Tower(layer=(-2, 3, 10)).blocks(12, default=0) == [3, 10]
    with pytest.raises(ValueError, match="layer is 12; the tower has 12 blocks: expected -12..11"):
        Tower(layer=(12,)).blocks(12, default=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid(k=()), "k is empty"),
        (lambda: Grid(variant=("topk",), k=(8, 0)), "TrainConfig.k is 0"),
        (lambda: Grid(latent_shards=2), "latent_shards is 2; processes share the images"),
        (lambda: SweepOptions(memory_gb=0.0), "memory_gb is 0.0"),
        (lambda: SweepOptions(test_limit=0), "test_limit is 0"),
    ],
)
def test_a_mistake_names_the_option(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()

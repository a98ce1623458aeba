"""The presets hold the published numbers, and what a user changes changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from patchsae.adapt import section
from patchsae.adapt.options import AdaptOptions
from patchsae.adapt.recipes import Kind, Recipe, published
from patchsae.adapters.kinds import KINDS


def test_every_kind_of_adapter_has_a_recipe_and_its_words_in_the_report() -> None:
    assert set(get_args(Kind)) == set(KINDS) == set(section._KINDS) == set(section._PLACES)


def test_maple_base_to_novel_is_the_published_configuration() -> None:
    recipe = published("maple", "base-to-novel", 16, 50)
    assert (recipe.optimiser, recipe.lr, recipe.weight_decay) == ("sgd", 0.0035, 5e-4)
    assert (recipe.batch_size, recipe.epochs, recipe.adapter) == (4, 5, {"n_ctx": 2, "depth": 9})
    assert (recipe.warm_up, recipe.warm_up_kind, recipe.warm_up_lr) == (1, "constant", 1e-5)
    assert recipe.augment == "crop-flip"


def test_maple_across_datasets_is_shallower_and_shorter() -> None:
    recipe = published("maple", "cross-dataset", 16, 1000)
    assert (recipe.lr, recipe.epochs, recipe.adapter) == (0.0026, 2, {"n_ctx": 2, "depth": 3})


@pytest.mark.parametrize(
    ("shots", "classes", "epochs"), [(1, 100, 50), (2, 100, 100), (4, 100, 100), (8, 100, 200), (16, 1000, 50)]
)
def test_coop_trains_longer_on_more_shots_but_not_on_imagenet(shots: int, classes: int, epochs: int) -> None:
    recipe = published("coop", "few-shot", shots, classes)
    assert (recipe.lr, recipe.epochs, recipe.batch_size, recipe.adapter) == (0.002, epochs, 32, {"n_ctx": 16})


def test_coop_starts_from_words_where_it_meets_new_classes() -> None:
    recipe = published("coop", "base-to-novel", 16, 50)
    assert (recipe.start_words, recipe.adapter) == ("a photo of a", {"n_ctx": 4})
    assert published("coop", "few-shot", 16, 50).start_words is None
    assert AdaptOptions(adapter="coop", n_ctx=8).recipe(50, 12).start_words is None


def test_vpt_lora_and_the_linear_probe() -> None:
    vpt, lora, linear = (published(kind, "few-shot", 4, 10) for kind in ("vpt", "lora", "linear"))
    assert (vpt.lr, vpt.epochs, vpt.batch_size, vpt.adapter) == (0.0025, 5, 4, {"n_ctx": 8, "depth": 12})
    assert (lora.optimiser, lora.lr, lora.weight_decay, lora.steps) == ("adamw", 2e-4, 1e-2, 2000)
    assert (lora.adapter, lora.batch_size, lora.warm_up) == ({"rank": 2, "alpha": 1.0}, 32, 0)
    assert (linear.optimiser, linear.lr, linear.steps, linear.batch_size) == ("adamw", 1e-3, 12_800, 8)
    assert (linear.warm_up, linear.warm_up_kind, linear.augment) == (50, "linear", "none")


def test_what_is_not_given_stays_published() -> None:
    recipe = AdaptOptions(adapter="maple", lr=0.5, n_ctx=3).recipe(10, 12)
    base = published("maple", "base-to-novel", 16, 10)
    assert recipe == replace(base, lr=0.5, adapter={"n_ctx": 3, "depth": 9})


def test_another_settings_numbers_can_be_asked_for() -> None:
    options = AdaptOptions(setting="few-shot", preset="cross-dataset")
    assert options.recipe(10, 12) == published("maple", "cross-dataset", 16, 10)


def test_a_published_depth_ends_with_the_tower_and_an_asked_one_does_not() -> None:
    assert AdaptOptions().recipe(10, 4).adapter["depth"] == 4
    assert AdaptOptions(depth=9).recipe(10, 4).adapter["depth"] == 9


def test_time_in_other_units_drops_the_warm_up_of_the_old_ones() -> None:
    recipe = AdaptOptions(steps=30).recipe(10, 12)
    assert (recipe.epochs, recipe.steps, recipe.warm_up) == (None, 30, 0)
    assert AdaptOptions(epochs=30).recipe(10, 12).warm_up == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "coop", "depth": 3}, "depth is 3; expected nothing: coop has no such setting"),
        ({"adapter": "maple", "rank": 3}, "rank is 3"),
        ({"adapter": "maple", "epochs": 1}, "epochs is 1; expected more than the warm-up, which takes 1"),
    ],
)
def test_settings_that_do_not_fit_are_errors(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptOptions(**changes).recipe(10, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "mapel"}, "adapter is 'mapel'; expected one of maple, coop"),
        ({"setting": "base"}, "setting is 'base'"),
        ({"preset": "base"}, "preset is 'base'"),
        ({"shots": 0}, "shots is 0"),
        ({"n_ctx": 0}, "n_ctx is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"epochs": 2, "steps": 3}, "either epochs or steps, not both"),
    ],
)
def test_options_out_of_range_are_errors(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptOptions(**changes)


def test_a_recipe_has_one_length() -> None:
    with pytest.raises(ValueError, match="either epochs or steps"):
        Recipe("sgd", 0.1, 0.0, 4, epochs=5, steps=5)

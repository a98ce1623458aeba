"""Presets: every shipped one is read, options come before them, mistakes name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.cli.choices import Images, Model, Tower
from patchsae.training import presets
from patchsae.training.config import TrainConfig
from patchsae.training.sweep.grid import Grid

GROUPS = {"images": Images, "model": Model, "recipe": TrainConfig}

# Table 2 of arXiv 2412.05276: what each row changes of the default run.
ROWS = {
    "paper": {},
    "paper-cls": {"cls_only": True},
    "paper-layer8": {"layer": 7},
    "paper-layer5": {"layer": 4},
    "paper-layer2": {"layer": 1},
    "paper-l14-l1-0": {"model": "ViT-L-14-quickgelu", "cls_only": True, "l1": 0.0},
    "paper-l14-l1-8e-4": {"model": "ViT-L-14-quickgelu", "cls_only": True, "l1": 8e-4},
    "paper-l14-x32": {"model": "ViT-L-14-quickgelu", "cls_only": True, "expansion": 32},
    "paper-l14-x128": {"model": "ViT-L-14-quickgelu", "cls_only": True, "expansion": 128},
    "paper-l14-no-ghost": {"model": "ViT-L-14-quickgelu", "cls_only": True, "dead_term": "none"},
    "paper-l14-mean": {"model": "ViT-L-14-quickgelu", "cls_only": True, "start": "mean"},
}


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_papers_table_are_the_released_recipe_but_for_what_they_vary(row: str) -> None:
    found = presets.groups(row, GROUPS)
    expected = {"model": "ViT-B-16-quickgelu", "pretrained": "openai", "layer": -2, **ROWS[row]}
    fields = TrainConfig.__dataclass_fields__
    assert found["recipe"] == TrainConfig(**{key: value for key, value in expected.items() if key in fields})
    assert found["model"] == Model(**{key: value for key, value in expected.items() if key not in fields})


@pytest.mark.parametrize("name", presets.names())
def test_every_shipped_preset_serves_a_training_and_a_sweep(name: str) -> None:
    presets.groups(name, GROUPS)
    grid = presets.groups(name, {"images": Images, "tower": Tower, "recipe": Grid})
    recipe = presets.groups(name, GROUPS)["recipe"]
    assert [trial.config for trial in grid["recipe"].trials([0])] == [recipe]


def test_a_preset_gives_lists_and_single_values_to_a_grid(tmp_path: Path) -> None:
    mine = write(tmp_path, 'extends = "quick"\nvariant = ["topk", "relu"]\nk = [8, 16]\nlayer = [-2, -3]\n')
    found = presets.groups(mine, {"images": Images, "tower": Tower, "recipe": Grid})
    assert found["tower"].layer == (-2, -3)
    assert found["images"].images == "shapes"
    assert (found["recipe"].variant, found["recipe"].k, found["recipe"].l1) == (("topk", "relu"), (8, 16), (1e-3,))


def test_what_extends_comes_first(tmp_path: Path) -> None:
    found = presets.groups(write(tmp_path, 'extends = "paper-layer8"\nl1 = 1\n'), GROUPS)
    assert (found["recipe"].l1, found["model"].layer, found["recipe"].lr) == (1.0, 7, 4e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expansoin = 8", "expansoin is not an option; did you mean expansion?"),
        ("[recipe]\nlr = 1.0", "recipe is not an option"),
        ("expansion = 8.0", "expansion is 8.0; expected an integer"),
        ("expansion = true", "expansion is True; expected an integer"),
        ("lr = 'fast'", "lr is 'fast'; expected a number"),
        ("model = 3", "model is 3; expected text"),
        ("variant = 'topkk'", "variant is 'topkk'; expected one of relu, topk"),
        ("prefixes = [0.5, '1']", "prefixes is .*; expected a number"),
        ("lr = -1.0", "TrainConfig.lr is -1.0"),
        ("extends = 'papre'", "extends is 'papre'; expected one of paper"),
        ("lr = ", "is not TOML"),
    ],
)
def test_a_mistake_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        presets.groups(write(tmp_path, text), GROUPS)


def test_a_name_that_is_no_preset_lists_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"one of .*paper.*; did you mean paper\?"):
        presets.read("papr")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        presets.read("nowhere.toml")


@pytest.mark.parametrize("given", ["images", "cache"])
def test_a_preset_yields_to_images_and_caches_that_are_given(tmp_path: Path, given: str) -> None:
    mine = write(tmp_path, 'extends = "quick"\nlimit = 7\npretrained = "x"\nlayer = 3\ndtype = "bfloat16"\n')
    found = presets.groups(mine, GROUPS, [given, "run"])
    assert "images" not in found
    assert found["recipe"] == presets.groups("quick", GROUPS)["recipe"]
    assert ("model" in found) == (given == "images")


def test_the_weights_of_a_preset_are_those_of_its_model(tmp_path: Path) -> None:
    mine = write(tmp_path, 'extends = "quick"\npretrained = "x"\nlayer = 3\n')
    found = presets.groups(mine, GROUPS, ["model"])
    assert found["model"] == Model(layer=3)
    assert found["images"].images == "shapes"

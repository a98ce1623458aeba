"""What `compare`, `table` and `correlate` are told, up to their results: the sides, their names, and mistakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from patchsae.adapters import save_adapter
from patchsae.cli.choices import Images, Model, Sides
from patchsae.cli.entry import main
from patchsae.cli.sides import open_cell, open_sides
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run
from patchsae.experiments.table import Cell
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests.experiments.worlds import make_clip, make_prompted, make_sae

IMAGES = Images("shapes?n=12", "train")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("clips") / "first"


@pytest.fixture(scope="module")
def clip(clip_folder) -> SplitCLIP:
    return make_clip(clip_folder)


@pytest.fixture(scope="module")
def reader(clip) -> SparseAutoencoder:
    """The autoencoder, with the CLIP it is of in its configuration."""
    sae = make_sae(clip.width)
    config = SAEConfig(clip.width, sae.config.d_sae, metadata=clip.metadata)
    return SparseAutoencoder.from_tensors(config, sae.state_dict())


@pytest.fixture(scope="module")
def adapter(clip, tmp_path_factory) -> str:
    adapted = make_prompted(clip, ShapesWorld().classnames or [])
    return str(save_adapter(adapted, tmp_path_factory.mktemp("adapted")))


def test_an_adapter_makes_the_second_side(reader, adapter) -> None:
    found = open_sides(Sides(other_adapter=adapter, test_split="test", test_limit=9), IMAGES, Model(), reader)
    assert (found.first.name, found.second.name) == ("CLIP", "vpt")
    assert found.first.clip is found.second.clip.clip
    assert found.first.dataset is found.second.dataset
    assert len(found.tested) == 9
    assert found.settings["other_adapter"] == adapter
    assert "test_split" not in found.settings
    assert found.test_settings["test_split"] == "test"


def test_two_of_a_kind_are_a_and_b_unless_named(reader, adapter, clip, tmp_path) -> None:
    other = str(save_adapter(make_prompted(clip, ShapesWorld().classnames or [], seed=3), tmp_path))
    choice = Sides(adapter=adapter, other_adapter=other)
    found = open_sides(choice, IMAGES, Model(), reader)
    assert (found.first.name, found.second.name) == ("A", "B")
    assert found.first.clip.fingerprint != found.second.clip.fingerprint
    named = open_sides(replace(choice, labels=("seed 0", "seed 3")), IMAGES, Model(), reader)
    assert (named.first.name, named.second.name) == ("seed 0", "seed 3")


def test_another_checkpoint_is_another_side(reader, clip_folder) -> None:
    make_clip(clip_folder.with_name("second"), seed=1)
    choice = Sides(other_model=f"local-dir:{clip_folder.with_name('second')}")
    found = open_sides(choice, IMAGES, Model(), reader)
    assert found.first.clip.fingerprint != found.second.clip.fingerprint
    assert found.settings["other_model"] == choice.other_model


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Sides(), "no second side"),
        (Sides(other_adapter="NOWHERE"), "NOWHERE does not exist"),
        (Sides(other_images="shapes?n=3&seed=1", test_split="test"), "leave one of the two out"),
    ],
)
def test_mistakes_are_named(reader, choice, message) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        open_sides(choice, IMAGES, Model(), reader)


def test_an_adapter_without_classes_is_refused(reader, adapter, tmp_path) -> None:
    ShapesWorld(n=1).sample(0).image.save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="tells classes apart"):
        open_sides(Sides(other_adapter=adapter), Images(str(tmp_path)), Model(), reader)


def test_a_cell_is_opened_and_its_mistakes_begin_with_its_name(clip, reader, adapter) -> None:
    cell = Cell("one", "shapes?n=20", adapter, rank_limit=5, test_limit=4, label="prompts")
    found = open_cell(cell, clip)
    assert (found.first.name, found.second.name) == ("CLIP", "prompts")
    assert (len(found.first.dataset), len(found.test)) == (5, 4)
    assert found.test.name != found.first.dataset.name
    with pytest.raises(ValueError, match=r"cell one: .*NOWHERE does not exist"):
        open_cell(replace(cell, adapter="NOWHERE"), clip)
    with pytest.raises(ValueError, match=r"cell one: .*split is 'best'"):
        open_cell(replace(cell, test_split="best"), clip)


@pytest.mark.slow
def test_the_verbs_leave_results_and_one_report(reader, adapter, tmp_path, capsys) -> None:
    reader.save(tmp_path / "sae")
    root = tmp_path / "run"
    to = ["--run", str(root), "--sae", str(tmp_path / "sae")]
    small = ["--templates", "a {}.", "--show-latents", "0"]
    compare = ["compare", *to, "--images", "shapes?n=10", "--split", "train", "--other-adapter", adapter, *small]
    main([*compare, "--test-split", "test", "--test-limit", "9", "--ks", "1", "--groups", "base-novel"])
    cells: Path = tmp_path / "cells.toml"
    cells.write_text(f'[[cells]]\nname = "one"\nimages = "shapes?n=9"\nadapter = "{adapter}"\ntest_limit = 8\n')
    main(["table", *to, "--cells", str(cells), *small])
    main(["correlate", "--run", str(root), "--stages", "compare"])
    assert "| one | vpt |" in capsys.readouterr().out
    finished = [stage.name for stage in Run(root).stages() if stage.finished]
    assert finished == ["compare", "compare-test", "correlate", "table"]
    page = (root / "report.html").read_text()
    assert [title in page for title in ("Comparison: CLIP against vpt", "Rankings across models")] == [True, True]
    assert page.index('id="compare-test"') < page.index('id="table"') < page.index('id="correlate"')
    assert len(Run(root).stage("correlate").read_table("correlation.csv")["compare: vpt"]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["correlate", "--run", str(root), "--stages", "compare", "nothing"])
    assert stop.value.code == 2
    assert "Finished stages there: compare" in capsys.readouterr().err

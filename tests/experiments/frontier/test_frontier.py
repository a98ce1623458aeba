"""The frontier of a sweep: the figures are those of every autoencoder on its own, in one pass or in several."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from patchsae import load_sae
from patchsae.data import batches, open_images
from patchsae.disk.runs import Run, Stage
from patchsae.experiments import frontier
from patchsae.experiments.frontier.experiment import TABLE
from patchsae.experiments.frontier.result import Point
from patchsae.experiments.frontier.section import frontier_figure
from patchsae.experiments.options import StreamOptions
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.models.taps import Taps
from patchsae.training.origin import FromImages
from patchsae.training.sweep.grid import Grid
from patchsae.training.sweep.train import Member, train_grid
from tests.training.tiny import write_clip

TEST = "shapes:test?n=24&size=16"
OPTIONS = StreamOptions(batch_size=8)
PLENTY = 10**12


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> SplitCLIP:
    return load_clip(f"local-dir:{clip_folder}", device="cpu")


@pytest.fixture(scope="module")
def members(clip: SplitCLIP, tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    grid = Grid(variant=("relu", "topk"), k=(2, 4), l1=(0.01,), expansion=(4,), batch_size=4, total_images=16)
    images = open_images("shapes:train?n=16&size=16")
    return train_grid(
        FromImages(clip, images), grid.trials([0, 1]), Run(tmp_path_factory.mktemp("saes")), memory=PLENTY
    )


def judge(root: Path, clip: SplitCLIP, members: list[Member], images: str = TEST, memory: int = PLENTY) -> Stage:
    stage = Run(root).stage("sweep")
    frontier.run(clip, members, open_images(images), stage, OPTIONS, memory=memory)
    return stage


def test_figures_are_those_of_each_autoencoder_alone(
    tmp_path: Path, clip: SplitCLIP, clip_folder: Path, members: list[Member]
) -> None:
    table = judge(tmp_path, clip, members).read_table(TABLE)
    assert list(table["name"]) == [member.trial.name for member in members]
    pixels = torch.cat([batch.pixels for batch in batches(open_images(TEST), clip.preprocess, 24)])
    for row, member in enumerate(members):
        split = load_clip(f"local-dir:{clip_folder}", layer=member.trial.layer, device="cpu")
        x = split.residual(pixels).flatten(0, 1).double()
        sae = load_sae(member.stage.path, "cpu")
        z = sae.encode(x.float())
        error = (sae.decode(z).detach().double() - x).square().sum()
        fired = z.to_dense() > 0
        expected = {
            "l0": z.l0,
            "explained_variance": 1 - float(error / (x - x.mean(0)).square().sum()),
            "nmse": float(error / x.square().sum()),
            "dead": float((~fired.any(0)).double().mean()),
            "dense": float((fired.double().mean(0) > 0.1).double().mean()),
        }
        for name, value in expected.items():
            assert table[name][row] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        assert 0 < table["concept_precision"][row] < 1
        assert (table["option"][row], table["value"][row]) == member.trial.strength


def test_what_was_trained_on_cls_is_judged_on_cls(tmp_path: Path, clip: SplitCLIP) -> None:
    grid = Grid(l1=(1e-4,), expansion=(4,), batch_size=4, total_images=16, cls_only=True)
    images = open_images("shapes:train?n=16&size=16")
    (member,) = train_grid(FromImages(clip, images), grid.trials([0]), Run(tmp_path / "saes"), memory=PLENTY)
    table = judge(tmp_path, clip, [member]).read_table(TABLE)
    pixels = torch.cat([batch.pixels for batch in batches(open_images(TEST), clip.preprocess, 24)])
    x = Taps(clip, [0]).residual(pixels)[:, 0]
    fired = load_sae(member.stage.path, "cpu").encode(x).to_dense() > 0
    assert table["l0"][0] == pytest.approx(fired.sum(1).double().mean().item())
    assert table["dead"][0] == pytest.approx((~fired.any(0)).double().mean().item())
    assert table["dense"][0] == pytest.approx((fired.double().mean(0) > 0.1).double().mean().item())
    assert 0 < table["concept_precision"][0] < 1


def test_several_passes_give_the_same_table(tmp_path: Path, clip: SplitCLIP, members: list[Member]) -> None:
    one = judge(tmp_path / "one", clip, members)
    many = judge(tmp_path / "many", clip, members, memory=1)
    assert (one.path / TABLE).read_bytes() == (many.path / TABLE).read_bytes()


def test_a_member_that_diverged_is_named_and_has_no_row(
    tmp_path: Path, clip: SplitCLIP, members: list[Member], capsys: pytest.CaptureFixture[str]
) -> None:
    judge(tmp_path, clip, members)
    judge(tmp_path, clip, members)
    assert "already finished" in capsys.readouterr().out
    lost = replace(members[0], diverged="step 3 has a loss that is not finite")
    stage = judge(tmp_path, clip, [lost, *members[1:]])  # other members: written anew
    assert list(stage.read_table(TABLE)["name"]) == [member.trial.name for member in members[1:]]
    assert f"{lost.trial.name} diverged and is left out: step 3" in stage.load_json("section")["html"]
    with pytest.raises(ValueError, match="all 1 autoencoders of the sweep diverged"):
        judge(tmp_path / "none", clip, [lost])


def test_images_without_concepts_have_no_concept_score(tmp_path: Path, clip: SplitCLIP, members: list[Member]) -> None:
    world = open_images(TEST)
    for i in range(4):
        world.sample(i).image.save(tmp_path / f"{i}.png")
    stage = judge(tmp_path / "run", clip, members[:2], images=str(tmp_path))
    table = stage.read_table(TABLE)
    assert table["concept_precision"] == [None, None] or list(table["concept_precision"]) == [None, None]
    assert table["l0"][0] > 0


def test_a_line_joins_what_differs_in_sparsity_alone() -> None:
    point = Point("a", "topk", 1, 8, 64, "k", 4.0, 4.0, 0.5, 0.5, 0.1, 0.0, 0.0, 0.4, 0.1, 0.2)
    others = [
        replace(point, value=8.0, l0=8.0, explained_variance=0.7),
        replace(point, variant="relu", l0=0.0),  # no place on a logarithmic axis
        replace(point, expansion=16),
    ]
    figure = frontier_figure([point, *others])
    variance, concepts = figure.axes
    drawn = {line.get_label(): line.get_xdata() for line in variance.get_lines()}
    assert {label: list(x) for label, x in drawn.items()} == {
        "topk, x8, block 1": [4.0, 8.0],
        "relu, x8, block 1": [],
        "topk, x16, block 1": [4.0],
    }
    assert concepts.get_lines()[-1].get_label() == "chance"
    unscored = [replace(p, concept_precision=math.nan, base_rate=math.nan) for p in [point, *others]]
    assert len(frontier_figure(unscored).axes) == 1

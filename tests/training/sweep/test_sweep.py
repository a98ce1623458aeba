"""A sweep leaves what single trainings would leave, however it is cut, stopped or enlarged."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from patchsae import load_sae
from patchsae.activations import CacheOptions, write_cache
from patchsae.data import open_images
from patchsae.disk.runs import Run
from patchsae.interrupt import Interrupted
from patchsae.models.clip import SplitCLIP
from patchsae.training.origin import FromCache, FromImages
from patchsae.training.sizes import cut
from patchsae.training.sweep.groups import TooLarge, group_bytes
from patchsae.training.sweep.train import train_grid
from patchsae.training.trainer import train
from tests.parallel import launch
from tests.training.signals import SignalsOnce
from tests.training.sweep import sweep_process
from tests.training.sweep.sweep_process import BLOCKS, MEMORY, short_grid, sweep_in, weights
from tests.training.tiny import SOURCE


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, clip: SplitCLIP) -> dict[str, bytes]:
    return weights(sweep_in(tmp_path_factory.mktemp("sweep") / "saes", clip, short_grid()))


def test_every_autoencoder_is_that_of_a_training_of_its_own(
    tmp_path: Path, clip: SplitCLIP, unbroken: dict[str, bytes]
) -> None:
    alone = {}
    for trial in short_grid().trials([clip.layer]):
        stage = Run(tmp_path).stage(trial.name)
        train(FromImages(clip, open_images(SOURCE), {"images": SOURCE}), trial.config, stage)
        alone[trial.name] = (stage.path / "sae.safetensors").read_bytes()
    assert clip.layer in BLOCKS
    assert alone == {name: unbroken[name] for name in alone}


def test_members_are_finished_stages_that_open_and_say_where_they_come_from(tmp_path: Path, clip: SplitCLIP) -> None:
    members = sweep_in(tmp_path, clip, short_grid())
    assert len(members) == 4
    for member in members:
        assert member.stage.finished
        assert member.diverged is None
        sae = load_sae(member.stage.path, "cpu")
        assert sae.config.d_sae == 4 * clip.width
        assert sae.config.metadata["layer"] == member.trial.layer
        assert sae.config.metadata["images"] == SOURCE
        assert [row["step"] for row in member.stage.metrics()] == list(range(1, 13))
        assert not list(member.stage.path.glob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"shuffle": 3}, {"cls_only": True}, {"tokens_per_image": 2, "accumulate": 2}])
def test_one_block_or_several_see_the_same_tokens(tmp_path: Path, clip: SplitCLIP, changes: dict) -> None:
    grid = short_grid(variant=("topk",), total_images=16, **changes)
    both = weights(sweep_in(tmp_path / "both", clip, grid))
    one = weights(sweep_in(tmp_path / "one", clip, grid, blocks=[1]))
    assert one == {name: both[name] for name in one}


@pytest.mark.slow
def test_a_sweep_that_does_not_fit_is_cut_and_ends_with_the_same_bits(
    tmp_path: Path, clip: SplitCLIP, unbroken: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    trials, origin = short_grid().trials(BLOCKS), FromImages(clip, open_images(SOURCE))
    memory = group_bytes(origin, trials[:2])  # those of the first block; those of the second take as much
    members = sweep_in(tmp_path / "saes", clip, short_grid(), memory=memory)
    assert "sweep: 4 autoencoders in 2 groups, each with a pass over the images" in capsys.readouterr().err
    assert weights(members) == unbroken


def test_an_autoencoder_that_does_not_fit_alone_is_refused_before_anything_is_written(
    tmp_path: Path, clip: SplitCLIP
) -> None:
    small, large = short_grid(variant=("topk",), expansion=(4, 64)).trials([0])
    origin = FromImages(clip, open_images(SOURCE))
    assert group_bytes(origin, [small]) < group_bytes(origin, [large])
    with pytest.raises(TooLarge, match="topk-k3-x64-block0 needs .* and .* may be used: .* --memory-gb"):
        sweep_in(
            tmp_path / "saes",
            clip,
            short_grid(variant=("topk",), expansion=(4, 64)),
            memory=group_bytes(origin, [large]) - 1,
        )
    assert not (tmp_path / "saes").exists()


def test_a_setting_that_does_not_fit_is_refused_before_any_stage_begins(tmp_path: Path, clip: SplitCLIP) -> None:
    with pytest.raises(ValueError, match="tokens_per_image is 1000"):
        sweep_in(tmp_path, clip, short_grid(tokens_per_image=1000))
    assert not Run(tmp_path).stages()


def test_a_finished_sweep_does_nothing_and_a_larger_grid_adds_to_it(
    tmp_path: Path, clip: SplitCLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = short_grid(variant=("topk",), total_images=8)
    before = sweep_in(tmp_path, clip, grid)
    times = {member.trial.name: (member.stage.path / "sae.safetensors").stat().st_mtime_ns for member in before}
    more = sweep_in(tmp_path, clip, short_grid(variant=("topk",), total_images=8, k=(3, 5)))
    assert "already finished" in capsys.readouterr().out
    assert len(more) == 4
    for member in more:
        changed = (member.stage.path / "sae.safetensors").stat().st_mtime_ns
        assert times.get(member.trial.name, changed) == changed


def test_what_diverges_is_dropped_and_named_and_the_others_go_on(
    tmp_path: Path, clip: SplitCLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    # so strong a sparsity term overflows in the gradient; the other one is unharmed
    grid = short_grid(variant=("relu",), l1=(3e38, 0.1))
    members = {member.trial.config.l1: member for member in sweep_in(tmp_path / "both", clip, grid, blocks=[1])}
    lost, kept = members[3e38], members[0.1]
    assert lost.diverged is not None
    assert not lost.stage.finished
    assert f"{lost.trial.name}: dropped, the others go on. step" in capsys.readouterr().err
    alone = sweep_in(tmp_path / "alone", clip, short_grid(variant=("relu",), l1=(0.1,)), blocks=[1])
    assert weights([kept]) == weights(alone)
    again = sweep_in(tmp_path / "both", clip, grid, blocks=[1])
    assert [member.diverged for member in again] == [lost.diverged, None]


def test_a_signal_saves_and_the_same_command_ends_with_the_same_bits(
    tmp_path: Path, clip: SplitCLIP, unbroken: dict[str, bytes]
) -> None:
    dataset = SignalsOnce(open_images(SOURCE), signal.SIGTERM, at=30)
    with pytest.raises(Interrupted, match="stopped after step 6 of 12"):
        sweep_in(tmp_path / "saes", clip, short_grid(), dataset)
    assert weights(sweep_in(tmp_path / "saes", clip, short_grid())) == unbroken


@pytest.mark.slow
def test_members_at_different_steps_meet_again(tmp_path: Path, clip: SplitCLIP, unbroken: dict[str, bytes]) -> None:
    """As a kill between two checkpoints leaves them."""
    dataset = SignalsOnce(open_images(SOURCE), signal.SIGTERM, at=30)
    with pytest.raises(Interrupted):
        sweep_in(tmp_path / "saes", clip, short_grid(), dataset)
    newest = sorted((tmp_path / "saes" / "topk-k3-x4-block1" / "checkpoints").iterdir())[-1]
    newest.unlink()
    members = sweep_in(tmp_path / "saes", clip, short_grid())
    assert weights(members) == unbroken
    assert all([row["step"] for row in member.stage.metrics()] == list(range(1, 13)) for member in members)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, clip: SplitCLIP) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_cache(
        clip, open_images(SOURCE), folder, CacheOptions(batch_size=3, shard_mb=0.001), origin={"images": SOURCE}
    )
    return folder


def test_from_a_cache_every_autoencoder_is_that_of_a_training_on_it(
    tmp_path: Path, clip: SplitCLIP, cache: Path
) -> None:
    trials = short_grid().trials([clip.layer])
    members = train_grid(FromCache(cache), trials, Run(tmp_path / "saes"), memory=MEMORY)
    for trial, member in zip(trials, members, strict=True):
        stage = Run(tmp_path).stage(trial.name)
        train(FromCache(cache), trial.config, stage)
        assert (stage.path / "sae.safetensors").read_bytes() == weights([member])[trial.name]
        assert stage.config == member.stage.config
        assert load_sae(member.stage.path).config.metadata["images"] == SOURCE


def test_a_cache_has_the_output_of_one_block(tmp_path: Path, clip: SplitCLIP, cache: Path) -> None:
    trials = short_grid().trials(BLOCKS)
    with pytest.raises(ValueError, match=f"layer is .*; .* holds the output of block {clip.layer} alone"):
        train_grid(FromCache(cache), trials, Run(tmp_path), memory=MEMORY)
    assert not Run(tmp_path).stages()


def test_every_autoencoder_has_loggers_of_its_own(tmp_path: Path, clip: SplitCLIP) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    members = sweep_in(tmp_path, clip, short_grid(total_images=16), log=["tensorboard"])
    assert len(members) == 4
    for member in members:
        shown = EventAccumulator(str(member.stage.path / "tensorboard"))
        shown.Reload()
        found = [(event.step, event.value) for event in shown.Scalars(f"{member.trial.name}/mse")]
        assert found == [(row["step"], pytest.approx(row["mse"])) for row in member.stage.metrics()]
    with pytest.raises(ValueError, match="log has 'tensorbord'"):
        sweep_in(tmp_path / "other", clip, short_grid(), log=["tensorbord"])


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path, clip_folder: Path, clip: SplitCLIP) -> None:
    changes = {"total_images": 80, "checkpoint_steps": 4, "variant": ("topk", "batchtopk")}
    expected = weights(sweep_in(tmp_path / "unbroken" / "saes", clip, short_grid(**changes)))
    root = tmp_path / "victim" / "saes"
    victim = launch.alone(sweep_process.work, root, clip_folder, changes, log=tmp_path / "victim.log")
    watched = Run(root).stage("topk-k3-x4-block1")
    deadline = time.monotonic() + 120
    while len(watched.metrics()) < 9:
        assert victim.is_alive(), (tmp_path / "victim.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    victim.kill()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert not any(stage.finished for stage in Run(root).stages())
    assert weights(sweep_in(root, clip, short_grid(**changes))) == expected


def test_groups_are_in_order_and_fit() -> None:
    assert cut([3, 3, 3, 7, 1], 7) == [[0, 1], [2], [3], [4]]
    assert cut([9, 1], 7) == [[0], [1]]
    assert cut([], 7) == []

"""Whatever long work loses a data worker saves, says so, ends with the worker's status, and goes on when repeated."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from patchsae.activations import CacheOptions, write_cache
from patchsae.adapt.run import adapt
from patchsae.adapt.task import make_task
from patchsae.data import ImageDataset, open_images
from patchsae.interrupt import Interrupted
from tests.adapt import tiny as adapting
from tests.data.mortal import Mortal
from tests.experiments.stream.fold_process import fold_in
from tests.training import tiny
from tests.training.sweep import sweep_process

IMAGE = 9
Work = Callable[[Path, ImageDataset, Path, int], bytes]


def train(root: Path, images: ImageDataset, clips: Path, workers: int) -> bytes:
    _, stage = tiny.train_in(
        root, tiny.open_clip_dir(tiny.write_clip(clips)), tiny.short_config(), images, workers=workers
    )
    return tiny.final_bytes(stage)


def sweep(root: Path, images: ImageDataset, clips: Path, workers: int) -> bytes:
    clip = tiny.open_clip_dir(tiny.write_clip(clips))
    grid = sweep_process.short_grid(variant=("topk",))
    return repr(sweep_process.weights(sweep_process.sweep_in(root, clip, grid, images, workers=workers))).encode()


def cache(root: Path, images: ImageDataset, clips: Path, workers: int) -> bytes:
    options = CacheOptions(batch_size=2, shard_mb=4 * 5 * 32 / 1e6)
    write_cache(tiny.open_clip_dir(tiny.write_clip(clips)), images, root, options, workers=workers)
    return b"".join(path.read_bytes() for path in sorted(root.glob("shard-*")))


def fold(root: Path, images: ImageDataset, clips: Path, workers: int) -> bytes:
    accumulator, _ = fold_in(root, images, workers=workers)
    return repr((accumulator.total.tolist(), accumulator.seen.tolist())).encode()


def adaptation(root: Path, images: ImageDataset, clips: Path, workers: int) -> bytes:
    chosen = adapting.options(adapter="vpt", shots=8, workers=workers)
    task = make_task(chosen, images, images, [])
    clip = adapting.read_clip(adapting.write_clip(clips))
    stage = adapting.Run(root).stage("adapt")
    adapt(clip, task, stage, chosen)
    return adapting.results(stage)["adapter.safetensors"]


@pytest.mark.slow  # ten short trainings, and the first of each kind imports what it needs
@pytest.mark.parametrize("work", [train, sweep, cache, fold, adaptation])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_stops_the_work_which_then_goes_on_to_the_same_end(
    tmp_path: Path, work: Work, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = open_images(tiny.SOURCE)
    mortal = Mortal(images, IMAGE, tmp_path / "mark", signal.SIGKILL)
    clips = tmp_path / "clip"
    unbroken = work(tmp_path / "unbroken", mortal, clips, 0)
    assert not mortal.mark.exists()
    with pytest.raises(Interrupted) as stopped:
        work(tmp_path / "broken", mortal, clips, workers)
    said = capsys.readouterr().err
    assert stopped.value.code == 128 + signal.SIGKILL
    assert said.count("was ended by SIGKILL") == 1
    assert "he same command goes on from there" in str(stopped.value)
    assert work(tmp_path / "broken", mortal, clips, workers) == unbroken

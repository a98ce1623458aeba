"""A training process killed without warning, anywhere, and one that is signalled together with its data workers."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from patchsae.disk.atomic import is_partial
from patchsae.disk.runs import Run, Stage
from patchsae.training import checkpoint
from tests.parallel.launch import alone

from . import tiny

pytestmark = pytest.mark.slow

STEPS = 60
SHORT = {"total_images": 4 * STEPS, "checkpoint_steps": 7}
RECIPES: dict[str, dict[str, object]] = {
    "released": {},
    "topk": {"variant": "topk", "k": 4, "dead_term": "auxk", "shuffle": 3, "tokens_per_image": 3},
    "batchtopk": {"variant": "batchtopk", "k": 4, "dead_term": "resample", "resample_every": 5},
    "jumprelu": {"variant": "jumprelu", "l0": 0.1, "normalise": "standardise", "init": "data"},
    "gated": {"variant": "gated", "accumulate": 2, "clip_gradient": 0.5, "start_batches": 2, "shuffle": 5},
    "matryoshka": {"variant": "matryoshka", "k": 4, "prefixes": (0.25, 1.0), "dead_term": "auxk"},
}


def launch(root: Path, clip_folder: Path, changes: dict[str, object]) -> BaseProcess:
    return alone(tiny.work, root, clip_folder, {**SHORT, **changes})


def finished(root: Path, process: BaseProcess) -> Stage:
    process.join(300)
    assert process.exitcode == 0
    stage = Run(root).stage("train")
    assert stage.finished
    return stage


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def wait_for_step(root: Path, step: int, alive: Callable[[], bool]) -> None:
    stage = Run(root).stage("train")
    deadline = time.monotonic() + 300
    while len(stage.metrics()) < step:
        assert alive(), "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def assert_same(resumed: Stage, unbroken: Stage) -> None:
    assert tiny.final_bytes(resumed) == tiny.final_bytes(unbroken)
    assert tiny.timeless(resumed) == tiny.timeless(unbroken)
    assert len(tiny.timeless(resumed)) == int(resumed.config["total_images"]) // 4  # type: ignore[index]


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_random_points_it_ends_with_the_same_bits(tmp_path: Path, clip_folder: Path, recipe: str) -> None:
    chosen = random.Random(recipe)
    changes = RECIPES[recipe]
    unbroken = launch(tmp_path / "unbroken", clip_folder, changes)
    for first, last in ((1, 15), (20, 45)):
        victim = launch(tmp_path / "victim", clip_folder, changes)
        wait_for_step(tmp_path / "victim", chosen.randint(first, last), victim.is_alive)
        time.sleep(chosen.uniform(0, 0.01))
        kill(victim)
        assert not Run(tmp_path / "victim").stage("train").finished
    resumed = finished(tmp_path / "victim", launch(tmp_path / "victim", clip_folder, changes))
    assert_same(resumed, finished(tmp_path / "unbroken", unbroken))


def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(tmp_path: Path, clip_folder: Path) -> None:
    changes: dict[str, object] = {"expansion": 4096, "total_images": 32, "checkpoint_steps": 1}
    unbroken = launch(tmp_path / "unbroken", clip_folder, changes)
    folder = tmp_path / "victim" / "train" / checkpoint.FOLDER
    for after in (1, 4):
        left: list[Path] = []
        while not left:  # until a kill comes before the file has its name
            victim = launch(tmp_path / "victim", clip_folder, changes)
            wait_for_step(tmp_path / "victim", after + 1, victim.is_alive)
            while not any(is_partial(path) for path in folder.iterdir()):
                assert victim.is_alive()
            kill(victim)
            left = [path for path in folder.iterdir() if is_partial(path)]
        assert checkpoint.exists(folder)
    resumed = finished(tmp_path / "victim", launch(tmp_path / "victim", clip_folder, changes))
    assert_same(resumed, finished(tmp_path / "unbroken", unbroken))
    assert not folder.exists()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_trainer_and_workers_ends_cleanly(
    tmp_path: Path, clip_folder: Path, signum: int, status: int
) -> None:
    log = tmp_path / "errors.log"
    process = alone(tiny.work, tmp_path, clip_folder, SHORT, 2, log=log)
    wait_for_step(tmp_path, 10, process.is_alive)
    os.killpg(process.pid or 0, signum)
    process.join(300)
    errors = log.read_text()
    assert process.exitcode == status, errors
    assert "The same command goes on from there." in errors
    assert "Traceback" not in errors
    stage = Run(tmp_path).stage("train")
    assert (stage.path / checkpoint.FOLDER / f"{len(stage.metrics()):09d}.safetensors").exists()

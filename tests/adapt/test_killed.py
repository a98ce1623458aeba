"""An adaptation killed without warning, in a process of its own."""

from __future__ import annotations

import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from patchsae.disk.runs import Run, Stage
from tests.parallel.launch import alone

from . import tiny

pytestmark = pytest.mark.slow

STEPS = 60


def finished(root: Path, process: BaseProcess) -> Stage:
    process.join(240)
    assert process.exitcode == 0, root.with_suffix(".log").read_text()
    stage = Run(root).stage("adapt")
    assert stage.finished
    return stage


def wait_for_step(root: Path, process: BaseProcess, step: int) -> None:
    stage = Run(root).stage("adapt")
    deadline = time.monotonic() + 240
    while len(stage.metrics()) < step:
        assert process.is_alive(), "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("kind", ["maple", "lora"])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path, clip_folder: Path, kind: str) -> None:
    changes = {"adapter": kind, "setting": "base-to-novel", "steps": STEPS, "checkpoint_steps": 7, "lr": 0.01}

    def launch(name: str) -> BaseProcess:
        return alone(tiny.work, tmp_path / name, clip_folder, changes, log=tmp_path / f"{name}.log")

    unbroken, victim = launch("unbroken"), launch("victim")
    wait_for_step(tmp_path / "victim", victim, 25)
    victim.kill()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    stage = Run(tmp_path / "victim").stage("adapt")
    assert 25 <= len(stage.metrics()) < STEPS
    assert not stage.finished
    resumed = finished(tmp_path / "victim", launch("victim"))
    expected = finished(tmp_path / "unbroken", unbroken)
    assert tiny.results(resumed) == tiny.results(expected)
    assert tiny.timeless(resumed) == tiny.timeless(expected)
    assert len(tiny.timeless(resumed)) == STEPS

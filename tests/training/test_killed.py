"""A training process killed without warning, and one that is signalled together with its data workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchsae.runs import Run, Stage

from . import tiny

pytestmark = pytest.mark.slow

STEPS = 60
CHANGES = {"total_images": 4 * STEPS, "checkpoint_steps": 7}


def launch(root: Path, clip_folder: Path, workers: int = 0) -> subprocess.Popen[str]:
    """The run as a process group of its own, as a shell starts it."""
    command = [sys.executable, str(tiny.__file__), str(root), str(clip_folder), json.dumps(CHANGES), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(root: Path, process: subprocess.Popen[str]) -> Stage:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    stage = Run(root).stage("train")
    assert stage.finished
    return stage


def wait_for_step(root: Path, process: subprocess.Popen[str], step: int) -> None:
    stage = Run(root).stage("train")
    deadline = time.monotonic() + 120
    while len(stage.metrics()) < step:
        assert process.poll() is None, "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path, clip_folder: Path) -> None:
    unbroken, victim = (launch(tmp_path / name, clip_folder) for name in ("unbroken", "victim"))
    wait_for_step(tmp_path / "victim", victim, 25)
    victim.kill()
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    stage = Run(tmp_path / "victim").stage("train")
    assert 25 <= len(stage.metrics()) < STEPS
    assert not stage.finished
    resumed = finished(tmp_path / "victim", launch(tmp_path / "victim", clip_folder))
    expected = finished(tmp_path / "unbroken", unbroken)
    assert tiny.final_bytes(resumed) == tiny.final_bytes(expected)
    assert tiny.timeless(resumed) == tiny.timeless(expected)
    assert len(tiny.timeless(resumed)) == STEPS


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_trainer_and_workers_ends_cleanly(
    tmp_path: Path, clip_folder: Path, signum: int, status: int
) -> None:
    process = launch(tmp_path, clip_folder, workers=2)
    wait_for_step(tmp_path, process, 10)
    os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "The same command goes on from there." in errors
    assert "Traceback" not in errors
    stage = Run(tmp_path).stage("train")
    assert int(stage.load_tensors("checkpoint")["step"]) == len(stage.metrics())

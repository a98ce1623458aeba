"""An adaptation killed without warning, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from patchsae.disk.runs import Run, Stage

from . import tiny

pytestmark = pytest.mark.slow

STEPS = 60


def launch(root: Path, clip_folder: Path, changes: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, str(tiny.__file__), str(root), str(clip_folder), json.dumps(changes)]
    # tiny.py runs as a script there: what it imports from its own folder is nothing
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finished(root: Path, process: subprocess.Popen[str]) -> Stage:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    stage = Run(root).stage("adapt")
    assert stage.finished
    return stage


def wait_for_step(root: Path, process: subprocess.Popen[str], step: int) -> None:
    stage = Run(root).stage("adapt")
    deadline = time.monotonic() + 240
    while len(stage.metrics()) < step:
        assert process.poll() is None, "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("kind", ["maple", "lora"])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path, clip_folder: Path, kind: str) -> None:
    changes = {"adapter": kind, "setting": "base-to-novel", "steps": STEPS, "checkpoint_steps": 7, "lr": 0.01}
    unbroken, victim = (launch(tmp_path / name, clip_folder, changes) for name in ("unbroken", "victim"))
    wait_for_step(tmp_path / "victim", victim, 25)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    stage = Run(tmp_path / "victim").stage("adapt")
    assert 25 <= len(stage.metrics()) < STEPS
    assert not stage.finished
    resumed = finished(tmp_path / "victim", launch(tmp_path / "victim", clip_folder, changes))
    expected = finished(tmp_path / "unbroken", unbroken)
    assert tiny.results(resumed) == tiny.results(expected)
    assert tiny.timeless(resumed) == tiny.timeless(expected)
    assert len(tiny.timeless(resumed)) == STEPS

"""When one process ends, so do the others, soon and with its reason: real processes, really killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.parallel.ending import add_up
from tests.parallel.launch import ends, launch, torchrun

ENDING = "tests.parallel.ending"
SOON = 10.0
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("how", "reason"), [("exception", "LookupError: image 17 is torn"), ("exit", "SystemExit: 3")])
def test_an_exception_ends_all_with_its_reason(tmp_path: Path, how: str, reason: str) -> None:
    *others, failed = ends(launch(3, tmp_path, add_up, how, 60), tmp_path, SOON)
    assert failed.status != 0
    for other in others:
        assert other.status == 1
        assert f"ProcessLost: process 2 of 3 stopped: {reason}" in other.errors


def test_a_killed_process_ends_all(tmp_path: Path) -> None:
    *others, killed = ends(launch(3, tmp_path, add_up, "SIGKILL", 60), tmp_path, SOON)
    assert killed.status == -signal.SIGKILL
    for other in others:
        assert other.status == 1
        assert "ProcessLost: lost another process, or out of step" in other.errors


@pytest.mark.parametrize("how", ["sleep", "SIGSTOP"])
def test_patience_ends(tmp_path: Path, how: str) -> None:
    processes = launch(2, tmp_path, add_up, how, 2)
    processes[0].join(timeout=60)
    processes[1].kill()
    first, _ = ends(processes, tmp_path, SOON)
    assert first.status == 1
    assert "ProcessLost: lost another process, or out of step" in first.errors


def test_torchrun_ends_with_the_reason() -> None:
    process = torchrun(2, "-m", ENDING, "exception", "60")
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "LookupError: image 17 is torn" in output


def test_a_signal_to_torchrun_ends_all() -> None:
    process = torchrun(2, "-m", ENDING, "never", "60")
    assert process.stdout is not None
    assert any("working" in line for line in process.stdout)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0

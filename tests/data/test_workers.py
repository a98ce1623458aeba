"""A worker that dies is named at once, and none outlives the work or its parent: real processes, really killed."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from patchsae.data.workers import in_workers
from patchsae.interrupt import WorkerDied

from . import mortal

SOON = 5.0
FORK = multiprocessing.get_context("fork")  # what a command line does, and fast


class Dying:
    """Work that ends its process at some pieces: by a signal, or by a status of its own."""

    def __init__(self, at: tuple[int, ...], status: int) -> None:
        self.at, self.status = at, status

    def __call__(self, piece: int) -> torch.Tensor:
        if piece in self.at:
            faulthandler.disable()  # pytest's, which would print every thread
            if self.status < 0:
                os.kill(os.getpid(), -self.status)
            else:
                os._exit(self.status)
        return torch.full((1000,), piece)


class Failing:
    """Work that raises what does not survive pickling."""

    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def __call__(self, piece: int) -> int:
        if piece == 3:
            raise Failing.Odd(1, 2)
        return piece


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("status", [-signal.SIGKILL, -signal.SIGSEGV, 3])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_worker_that_dies_is_named_and_the_others_end(workers: int, status: int, all_of_them: bool) -> None:
    pieces = in_workers(Dying(tuple(range(7, 10)) if all_of_them else (7,), status), 40, workers)
    processes = list(pieces._processes)  # type: ignore[attr-defined]
    began = time.monotonic()
    taken: list[int] = []
    with pytest.raises(WorkerDied) as death:
        taken.extend(int(piece[0]) for piece in pieces)
    assert time.monotonic() - began < SOON
    assert taken == list(range(len(taken)))
    assert len(taken) <= 7
    assert death.value.pid in [process.pid for process in processes]
    how = "ended with status 3" if status > 0 else f"was ended by {signal.Signals(-status).name}"
    assert f"data worker {death.value.pid} {how}" in str(death.value)
    assert death.value.signum == (signal.SIGCHLD if status > 0 else -status)
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_are_meant_for_the_parent_change_nothing(signum: int) -> None:
    pieces = in_workers(Dying((5, 6), -signum), 20, 2)
    assert [int(piece[0]) for piece in pieces] == list(range(20))


def test_an_error_comes_as_it_was_raised_or_says_the_same() -> None:
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        list(in_workers(Failing(), 9, 2))


def test_workers_end_with_the_last_piece_and_when_the_rest_is_given_up() -> None:
    done, given_up = in_workers(int, 6, 2), in_workers(int, 6, 2)
    processes = [process for pieces in (done, given_up) for process in pieces._processes]  # type: ignore[attr-defined]
    assert list(done) == list(range(6))
    next(given_up)
    del given_up
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_parent_that_fails_beside_busy_workers_ends(tmp_path: Path, workers: int) -> None:
    process = FORK.Process(target=mortal.fail_beside_busy_workers, args=(tmp_path, workers))
    process.start()
    wait_for(lambda: len(list(tmp_path.iterdir())) == workers)
    process.join(SOON)
    assert process.exitcode == 1
    assert alive(tmp_path) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_no_idle_worker_outlives_a_parent_that_is_killed(tmp_path: Path, workers: int) -> None:
    process = FORK.Process(target=mortal.wait_beside_idle_workers, args=(tmp_path, workers))
    process.start()
    wait_for(lambda: len(list(tmp_path.iterdir())) == workers)
    process.kill()
    process.join()
    killed = time.monotonic()
    wait_for(lambda: alive(tmp_path) == [])
    assert time.monotonic() - killed < SOON


def alive(folder: Path) -> list[int]:
    """The processes that left their number and are there, zombies not counted."""
    return [int(path.name) for path in folder.iterdir() if _state(path.name) not in (None, "Z")]


def _state(pid: str) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 2 * SOON
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)

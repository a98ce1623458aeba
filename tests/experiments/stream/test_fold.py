"""A fold: stopped together with its data workers it saves and goes on, and it says which images it left out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from patchsae.data import BadImage, Sample
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run
from patchsae.interrupt import Interrupted
from tests.experiments.stream.fold_process import N, fold_in, fold_that_loses_a_worker, work
from tests.parallel.launch import alone, ends, launch


@pytest.mark.slow  # the process that others are forked from imports torch and torchvision first
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_process_group_saves(tmp_path: Path, signum: int, status: int) -> None:
    log = tmp_path / "errors.log"
    process = alone(work, tmp_path / "broken", 1, log=log)
    saved = tmp_path / "broken" / "fold" / "fold.safetensors"
    deadline = time.monotonic() + 120
    while not saved.exists():
        assert process.is_alive(), "ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid or 0, signum)
    process.join(60)
    errors = log.read_text()
    assert process.exitcode == status, errors
    assert errors.count("the same command goes on from there") == 1
    assert "Traceback" not in errors
    assert 0 < int(Run(tmp_path / "broken").stage("fold").load_tensors("fold")["position"]) < N
    (resumed, _), (whole, _) = (fold_in(tmp_path / name, ShapesWorld(n=N)) for name in ("broken", "whole"))
    assert torch.equal(resumed.total, whole.total)
    assert resumed.seen.tolist() == whole.seen.tolist() == list(range(N))


@pytest.mark.slow  # processes that join by gloo
def test_a_worker_lost_by_one_process_of_torchrun_stops_all_and_they_go_on(tmp_path: Path) -> None:
    for status in (128 + signal.SIGKILL, 0):
        both = ends(launch(2, tmp_path, fold_that_loses_a_worker, tmp_path), tmp_path, timeout=20)
        assert [one.status for one in both] == [status, status], both
        assert sum("was ended by SIGKILL" in one.errors for one in both) == (status > 0)


class WithBadImages(ShapesWorld):
    def sample(self, i: int) -> Sample:
        if i in (2, 5):
            raise BadImage(self.ids(i), "torn")
        return super().sample(i)


def test_images_left_out_are_named_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = WithBadImages(n=8)
    accumulator, result = fold_in(tmp_path / "bad", dataset, on_bad_image="skip")
    assert accumulator.seen.tolist() == [0, 1, 3, 4, 6, 7]
    assert result.used == 6
    printed = capsys.readouterr().err
    assert "2 of 8 images" in printed
    assert [printed.count(f"{dataset.ids(i)}: torn") for i in range(8)] == [0, 0, 1, 0, 0, 1, 0, 0]
    fold_in(tmp_path / "good", ShapesWorld(n=8))
    assert "left out" not in capsys.readouterr().err


class TornThenStopped(ShapesWorld):
    """No image of the second batch of three is good, so the third is fetched with it: a signal comes, one is bad."""

    def sample(self, i: int) -> Sample:
        if i in (3, 4, 5, 7):
            raise BadImage(self.ids(i), "torn")
        if i == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sample(i)


class Torn(TornThenStopped):
    def sample(self, i: int) -> Sample:
        return super().sample(i) if i != 6 else ShapesWorld.sample(self, i)


def test_an_image_left_out_ahead_of_a_stop_counts_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fold_in(tmp_path, TornThenStopped(n=10), on_bad_image="skip")
    assert int(Run(tmp_path).stage("fold").load_tensors("fold")["position"]) == 6
    accumulator, result = fold_in(tmp_path, Torn(n=10), on_bad_image="skip")
    assert [record.index for record in result.bad] == [3, 4, 5, 7]
    assert accumulator.seen.tolist() == [0, 1, 2, 6, 8, 9]


class Failing(ShapesWorld):
    def sample(self, i: int) -> Sample:
        raise RuntimeError("the disk is on fire")


def test_a_failure_without_a_signal_is_no_stop(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on fire"):
        fold_in(tmp_path, Failing(n=8))

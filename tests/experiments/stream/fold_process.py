"""A fold, for a process that the tests stop as well."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from patchsae.data import Batch, ImageDataset, Sample
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run
from patchsae.experiments import Job
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.stream.fold import FoldResult
from patchsae.interrupt import Interrupted
from patchsae.parallel import open_parallel
from tests.data.mortal import Mortal

N = 400


class Slow(ShapesWorld):
    """Pictures that take long enough for a signal to come in between."""

    def sample(self, i: int) -> Sample:
        time.sleep(0.02)
        return super().sample(i)


class Sum:
    """The sum of all pixels and the images in it."""

    def __init__(self) -> None:
        self.total = torch.zeros(3, dtype=torch.float64)
        self.seen: Tensor = torch.zeros(0, dtype=torch.int64)

    def update(self, batch: Batch) -> None:
        self.total += batch.pixels.double().sum((0, 2, 3))
        self.seen = torch.cat([self.seen, batch.index])

    def merge(self, other: Sum) -> None:
        self.total += other.total
        self.seen = torch.cat([self.seen, other.seen])

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total, self.seen = state["total"], state["seen"]


def fold_in(root: Path, dataset: ImageDataset, **options: Any) -> tuple[Sum, FoldResult]:
    job, accumulator = Job(Run(root).stage("fold")), Sum()
    with job.stage as stage:
        stage.begin({})
        choices = ExtractOptions(**{"batch_size": 3, **options})
        result = job.fold(dataset, to_tensor, accumulator.update, {"sum": accumulator}, choices, label="fold")
    return accumulator, result


def fold_that_loses_a_worker(root: Path) -> None:
    """One of the processes of torchrun; a data worker of one of them is killed, once."""
    multiprocessing.set_start_method("fork", force=True)  # as from a command line
    dataset, accumulator = Mortal(ShapesWorld(n=60), 31, root / "mark"), Sum()
    with open_parallel(1, "cpu") as parallel, Run(root).stage("fold") as stage:
        if parallel.is_first:
            stage.begin({})
        choices = ExtractOptions(batch_size=3, workers=2)
        job = Job(stage, parallel=parallel)
        job.fold(dataset, to_tensor, accumulator.update, {"sum": accumulator}, choices, label="fold")
        if parallel.is_first:
            assert sorted(accumulator.seen.tolist()) == list(range(60))


def work(root: Path, workers: int) -> None:
    try:
        fold_in(root, Slow(n=N), workers=workers, save_minutes=0)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise

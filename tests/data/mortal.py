"""Datasets whose reader dies, and processes with workers, to be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchsae.data import ImageDataset, Sample
from patchsae.data.base import Subset
from patchsae.data.workers import in_workers


class Mortal(Subset):
    """A dataset of which one image kills the first worker that reads it; then the file `mark` is there."""

    def __init__(self, parent: ImageDataset, image: int, mark: Path, signum: int = signal.SIGKILL) -> None:
        super().__init__(parent, np.arange(len(parent)))
        self.image, self.mark, self.signum = image, mark, signum

    def sample(self, i: int) -> Sample:
        if i == self.image and multiprocessing.parent_process() is not None and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.signum)
        return super().sample(i)


@dataclass(frozen=True)
class Waiting:
    """Work that leaves the number of its process in a folder; from piece `long` on it takes a minute."""

    folder: Path
    long: int

    def __call__(self, piece: int) -> int:
        (self.folder / str(os.getpid())).touch()
        time.sleep(60 if piece >= self.long else 0)
        return piece


def fail_beside_busy_workers(folder: Path, workers: int) -> None:
    """An exception while the workers are busy, whose traceback holds on to them."""
    pieces = in_workers(Waiting(folder, workers), 4 * workers, workers)
    for _ in range(workers):
        next(pieces)
    raise LookupError("the parent failed")


def wait_beside_idle_workers(folder: Path, workers: int) -> None:
    """Workers that wait for their parent, which is at something else."""
    pieces = in_workers(Waiting(folder, 100 * workers), 100 * workers, workers)
    next(pieces)
    time.sleep(60)

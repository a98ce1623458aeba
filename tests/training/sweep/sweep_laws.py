"""Sweeps in several processes (`tests.parallel.pool`): laws that each of them runs."""

from __future__ import annotations

import signal
from pathlib import Path

from patchsae.data import open_images
from patchsae.disk.runs import Run
from patchsae.experiments.frontier import experiment as frontier
from patchsae.experiments.options import StreamOptions
from patchsae.experiments.stream.job import Job
from patchsae.interrupt import Interrupted
from patchsae.parallel.base import Parallel
from tests.training.signals import SignalsOnce
from tests.training.sweep.sweep_process import MEMORY, short_grid, sweep_in
from tests.training.tiny import SOURCE, open_clip_dir


def swept(parallel: Parallel, root: Path, clip_folder: Path, changes: dict[str, object]) -> list[str | None]:
    """What each member diverged of."""
    members = sweep_in(root, open_clip_dir(clip_folder), short_grid(**changes), parallel=parallel)
    return [member.diverged for member in members]


def stopped(parallel: Parallel, root: Path, clip_folder: Path) -> str:
    """What is said where the last process alone gets a signal."""
    last = parallel.data_rank == parallel.data_size - 1
    dataset = SignalsOnce(open_images(SOURCE), signal.SIGTERM, at=20 if last else -1)
    try:
        sweep_in(root, open_clip_dir(clip_folder), short_grid(), dataset, parallel=parallel)
    except Interrupted as stop:
        return str(stop)
    return ""


def judged(parallel: Parallel, root: Path, clip_folder: Path, images: str) -> None:
    """The members that are in `root` already, judged; what that leaves is RUN/sweep."""
    clip = open_clip_dir(clip_folder)
    members = sweep_in(root / "saes", clip, short_grid(), parallel=parallel)
    job, options = Job(Run(root).stage("sweep"), parallel=parallel), StreamOptions(batch_size=5)
    frontier.run(clip, members, open_images(images), job, options, memory=MEMORY)

"""Experiments whose images are shared among processes (`tests.parallel.pool`), and ways to stop them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from patchsae.data import BadImage, Sample
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run
from patchsae.experiments import Job, compare, extract, mask
from patchsae.experiments.classes import Rankings
from patchsae.experiments.compare import Side
from patchsae.experiments.compare.options import CompareOptions
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.mask.options import MaskOptions
from patchsae.interrupt import Interrupted
from patchsae.parallel.base import Parallel
from tests.experiments.worlds import make_clip, make_images, make_sae

N = 23
EXTRACT = ExtractOptions(batch_size=3, top=4, show_latents=2, on_bad_image="skip")
MASK = MaskOptions(batch_size=2, ks=(1, 10), templates=("a {}.",))
COMPARE = CompareOptions(batch_size=2, top=4, show_latents=2, templates=("a {}.",))


class Torn(ShapesWorld):
    """Seven images are bad, a whole batch of three and the last one among them; the ninth takes the machine down.

    Down: SIGTERM to the process that reads it, once.
    """

    down = False

    def sample(self, i: int) -> Sample:
        if i in (1, 6, 7, 8, 15, 16, N - 1):
            raise BadImage(self.ids(i), "torn")
        if self.down and i == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().sample(i)


def job(run: Path, name: str, parallel: Parallel) -> Job:
    return Job(Run(run).stage(name), parallel=parallel)


def extracted(parallel: Parallel, clips: Path, run: Path, down: bool) -> int:
    """The signal that stopped it, or 0."""
    dataset = Torn(n=N)
    dataset.down = down
    clip = make_clip(clips)
    try:
        found = extract.run(clip, make_sae(), dataset, job(run, "extract", parallel), EXTRACT)
    except Interrupted as stop:
        return stop.signum
    assert found.images == N - 7
    return 0


def masked(parallel: Parallel, clips: Path, rankings: Path, run: Path) -> None:
    found = Rankings.load(Run(rankings).stage("classes"))
    mask.run(make_clip(clips), make_sae(), make_images(N, "val"), found, job(run, "mask", parallel), MASK)


def compared(parallel: Parallel, clips: Path, run: Path, same: bool) -> None:
    """Two models on the same images, or one model on two datasets."""
    clip = make_clip(clips)
    if same:
        sides = Side("A", clip, make_images(N)), Side("B", make_clip(clips.with_name("second"), 1), make_images(N))
    else:
        sides = Side("A", clip, make_images(N)), Side("B", clip, make_images(N, seed=1))
    compare.run(*sides, make_sae(), job(run, "compare", parallel), COMPARE)

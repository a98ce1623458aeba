"""An evaluation whose images are shared among processes (`tests.parallel.pool`)."""

from __future__ import annotations

from pathlib import Path

from patchsae.disk.runs import Run
from patchsae.experiments import Job, evaluate
from patchsae.experiments.evaluate.options import EvaluateOptions
from patchsae.parallel.base import Parallel
from tests.experiments.worlds import make_clip, make_images, make_sae

N = 27
OPTIONS = EvaluateOptions(batch_size=8, templates=("a {}.",), save_minutes=0)


def evaluated(parallel: Parallel, clips: Path, run: Path) -> None:
    clip = make_clip(clips)
    stage = Run(run).stage("evaluate")
    evaluate.run(clip, make_sae(clip.width), make_images(N, "test"), Job(stage, parallel=parallel), OPTIONS)

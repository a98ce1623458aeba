"""An extraction for a process that the tests kill."""

from pathlib import Path

from patchsae.disk.runs import Run
from patchsae.experiments import extract
from patchsae.experiments.extract.options import ExtractOptions
from tests.experiments.worlds import make_clip, make_images, make_sae

OPTIONS = ExtractOptions(batch_size=3, top=4, save_minutes=0, show_latents=2)


def work(clip_folder: Path, root: Path, n: int) -> None:
    model = make_clip(clip_folder)
    extract.run(model, make_sae(model.width), make_images(n), Run(root).stage("extract"), OPTIONS)

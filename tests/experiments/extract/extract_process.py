"""A process for the tests to kill: `python -m tests.experiments.extract.extract_process CLIP_FOLDER RUN N`."""

import sys
from pathlib import Path

from patchsae.disk.runs import Run
from patchsae.experiments.extract import experiment as extract
from patchsae.experiments.options import ExtractOptions
from tests.experiments.worlds import make_clip, make_images, make_sae

OPTIONS = ExtractOptions(batch_size=3, top=4, save_minutes=0, show_latents=2)

if __name__ == "__main__":
    clip_folder, run, n = Path(sys.argv[1]), Run(sys.argv[2]), int(sys.argv[3])
    model = make_clip(clip_folder)
    extract.run(model, make_sae(model.width), make_images(n), run.stage("extract"), OPTIONS)

"""A very small random CLIP, few small pictures, and one adaptation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from patchsae.adapt.options import AdaptOptions
from patchsae.adapt.result import Row
from patchsae.adapt.run import adapt
from patchsae.adapt.task import Task, make_task
from patchsae.data import open_images
from patchsae.disk.runs import Run, Stage
from patchsae.experiments import Job
from patchsae.models.clip import SplitCLIP, load_clip

SIZES = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 2},
}
TRAIN, TEST = "shapes:train?n=90&seed=5&size=16", "shapes:test?n=50&seed=5&size=16"
OTHER = "shapes:test?n=30&seed=6&size=16&label=colour"


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of T = 5 tokens with random weights, in open_clip's local-dir layout."""
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = open_clip.CLIP(**SIZES)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIZES, "preprocess_cfg": {}}))
    return folder


def read_clip(folder: Path) -> SplitCLIP:
    return load_clip(f"local-dir:{folder}", device="cpu")


def options(**changes: Any) -> AdaptOptions:
    """A few steps on two images a class."""
    values = {"setting": "few-shot", "shots": 2, "epochs": 4, "batch_size": 4, "log_every": 1, "test_batch_size": 16}
    if "steps" in changes:
        values.pop("epochs")
    return AdaptOptions(**{**values, **changes})  # type: ignore[arg-type]


def task(chosen: AdaptOptions) -> Task:
    targets = [open_images(OTHER)] if chosen.setting == "cross-dataset" else []
    return make_task(chosen, open_images(TRAIN), open_images(TEST), targets)


def adapt_in(
    root: Path, clip: SplitCLIP, chosen: AdaptOptions, name: str = "adapt", overwrite: bool = False
) -> tuple[list[Row], Stage]:
    stage = Run(root).stage(name)
    return adapt(clip, task(chosen), Job(stage, {"images": TRAIN}, overwrite), chosen), stage


def timeless(stage: Stage) -> list[dict[str, Any]]:
    """metrics.jsonl without the one number that depends on the clock."""
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in stage.metrics()]


def results(stage: Stage) -> dict[str, bytes]:
    """The files that a stage is for."""
    names = ("adapter.safetensors", "accuracy.csv", "classes.csv", "few_shot.csv")
    return {name: (stage.path / name).read_bytes() for name in names}


def work(root: Path, clip_folder: Path, changes: dict[str, Any]) -> None:
    """An adaptation, for a process of its own."""
    adapt_in(root, read_clip(clip_folder), options(**changes))

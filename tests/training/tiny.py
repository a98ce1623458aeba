"""A very small random CLIP on disk, and a short training run on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from patchsae.data import ImageDataset, open_images
from patchsae.disk.runs import Run, Stage
from patchsae.interrupt import Interrupted
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.models.sae import SparseAutoencoder
from patchsae.training.config import TrainConfig
from patchsae.training.origin import FromImages
from patchsae.training.trainer import train

SIZES = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49_408, "width": 8, "heads": 1, "layers": 1},
}
SOURCE = "shapes:train?n=23&seed=5&size=16"


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of T = 5 tokens and D = 16 with random weights, in open_clip's local-dir layout."""
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = open_clip.CLIP(**SIZES)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIZES, "preprocess_cfg": {}}))
    return folder


def open_clip_dir(folder: Path) -> SplitCLIP:
    return load_clip(f"local-dir:{folder}", device="cpu")


def short_config(**changes: object) -> TrainConfig:
    """Twelve steps of four images, in which some latents die and every pass over the data is reshuffled."""
    values = {
        "expansion": 8,
        "batch_size": 4,
        "total_images": 48,
        "lr": 0.01,
        "warm_up_steps": 5,
        "l1": 0.1,
        "dead_window": 0,
        "log_every": 1,
        "checkpoint_steps": 5,
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def train_in(
    root: Path,
    clip: SplitCLIP,
    config: TrainConfig,
    dataset: ImageDataset | None = None,
    workers: int = 0,
    **options: object,
) -> tuple[SparseAutoencoder, Stage]:
    stage = Run(root).stage("train")
    images = open_images(SOURCE) if dataset is None else dataset
    origin = FromImages(clip, images, {"images": SOURCE}, workers)
    return train(origin, config, stage, **options), stage  # type: ignore[arg-type]


def timeless(stage: Stage) -> list[dict]:
    """metrics.jsonl without the one number that depends on the clock."""
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in stage.metrics()]


def final_bytes(stage: Stage) -> bytes:
    return (stage.path / "sae.safetensors").read_bytes()


def work(root: Path, clip_folder: Path, changes: dict[str, object], workers: int = 0) -> None:
    """A short run, for a process of its own."""
    try:
        train_in(root, open_clip_dir(clip_folder), short_config(**changes), workers=workers)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise

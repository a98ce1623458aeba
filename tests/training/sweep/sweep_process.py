"""A short sweep on a very small CLIP."""

from __future__ import annotations

from pathlib import Path

from patchsae.data import ImageDataset, open_images
from patchsae.disk.runs import Run
from patchsae.models.clip import SplitCLIP
from patchsae.training.origin import FromImages
from patchsae.training.sweep.grid import Grid
from patchsae.training.sweep.train import Member, train_grid
from tests.training.tiny import SOURCE, open_clip_dir

BLOCKS = [0, 1]
MEMORY = 10**12


def short_grid(**changes: object) -> Grid:
    """Twelve steps of four images; four autoencoders: two variants on two blocks."""
    values = {
        "variant": ("relu", "topk"),
        "l1": (0.1,),
        "k": (3,),
        "expansion": (4,),
        "batch_size": 4,
        "total_images": 48,
        "lr": 0.01,
        "warm_up_steps": 5,
        "dead_window": 1,
        "log_every": 1,
        "checkpoint_steps": 5,
    }
    return Grid(**{**values, **changes})  # type: ignore[arg-type]


def sweep_in(
    root: Path,
    clip: SplitCLIP,
    grid: Grid,
    dataset: ImageDataset | None = None,
    memory: int = MEMORY,
    blocks: list[int] = BLOCKS,
    workers: int = 0,
    **options: object,
) -> list[Member]:
    images = open_images(SOURCE) if dataset is None else dataset
    trials = grid.trials(blocks)
    origin = FromImages(clip, images, {"images": SOURCE}, workers)
    return train_grid(origin, trials, Run(root), memory=memory, **options)  # type: ignore[arg-type]


def weights(members: list[Member]) -> dict[str, bytes]:
    return {member.trial.name: (member.stage.path / "sae.safetensors").read_bytes() for member in members}


def work(root: Path, clip_folder: Path, changes: dict[str, object]) -> None:
    """A sweep, for a process of its own."""
    sweep_in(root, open_clip_dir(clip_folder), short_grid(**changes))

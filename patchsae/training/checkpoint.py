"""The state between two training steps: written whole to one file, and put back bit for bit.

Nothing after the start draws random numbers: the order of the images follows from the seed and the position. So there
is no generator to keep.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.data import BadImageRecord
from patchsae.runs import Stage
from patchsae.training.dead import DeadCounter

NAME = "checkpoint"


@dataclass
class TrainState:
    """Everything that decides how training goes on."""

    params: dict[str, Tensor]
    """The autoencoder's own parameters by name."""
    adam: pk.AdamState
    dead: DeadCounter
    step: int = 0
    """Steps taken."""
    position: int = 0
    """How much of the order of images has been used."""
    images: int = 0
    """Images trained on: those that could not be decoded are not among them."""
    bad: list[BadImageRecord] = field(default_factory=list)
    """The images that were left out."""
    choice: pk.StepChoice = field(default_factory=pk.StepChoice)
    """Of the kernels, on a GPU only; not saved: it changes a step by rounding."""
    prepared: pk.PreparedWeights | None = None
    """The autoencoder's own; not saved."""


def save(stage: Stage, state: TrainState) -> None:
    """Replace the stage's checkpoint by `state`, atomically."""
    counts = {"step": state.step, "position": state.position, "images": state.images, "adam_step": state.adam.step}
    bad = json.dumps([asdict(record) for record in state.bad]).encode()
    stage.save_tensors(
        NAME,
        {
            **_tensors(state),
            **{name: torch.tensor(value) for name, value in counts.items()},
            "bad": torch.tensor(list(bad), dtype=torch.uint8),
        },
    )


def exists(stage: Stage) -> bool:
    """Whether the stage has a checkpoint."""
    return _path(stage).exists()


def restore(stage: Stage, state: TrainState) -> None:
    """Fill `state` in place from the stage's checkpoint."""
    stored = stage.load_tensors(NAME)
    with torch.no_grad():
        for name, tensor in _tensors(state).items():
            tensor.copy_(stored[name])
    state.step, state.position, state.images, state.adam.step = (
        int(stored[name]) for name in ("step", "position", "images", "adam_step")
    )
    state.bad = [BadImageRecord(**record) for record in json.loads(bytes(stored["bad"].tolist()))]


def remove(stage: Stage) -> None:
    """Free the checkpoint's disk space: three times that of the autoencoder."""
    _path(stage).unlink(missing_ok=True)


def _path(stage: Stage) -> Path:
    return stage.path / f"{NAME}.safetensors"


def _tensors(state: TrainState) -> dict[str, Tensor]:
    return {
        **{f"params.{name}": tensor for name, tensor in state.params.items()},
        **{f"exp_avg.{name}": tensor for name, tensor in state.adam.exp_avg.items()},
        **{f"exp_avg_sq.{name}": tensor for name, tensor in state.adam.exp_avg_sq.items()},
        "since_fired": state.dead.since_fired,
    }

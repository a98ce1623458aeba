"""The state between two steps of a training: written whole to one file, and put back bit for bit.

Nothing after the start draws from a random stream: order and crops follow from the seed and the position. So there is
no generator to keep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from patchsae.data import BadImageRecord
from patchsae.disk.runs import Stage

NAME = "checkpoint"
FILE = f"{NAME}.safetensors"
_NUMBERS = {"step": int, "images": int, "loss_sum": float, "correct": int, "seen": int}


@dataclass
class AdapterState:
    """Everything that decides how training goes on."""

    params: Mapping[str, nn.Parameter]
    """The adapter's own tensors by name."""
    optimiser: torch.optim.Optimizer
    """Over `params`, in their order."""
    step: int = 0
    """Steps taken, a step without a readable image included."""
    images: int = 0
    """Images trained on."""
    loss_sum: float = 0.0
    """Sum of the losses of the images since the last line of metrics.jsonl."""
    correct: int = 0
    """How many of them were classified correctly."""
    seen: int = 0
    """How many they are."""
    bad: list[BadImageRecord] = field(default_factory=list)
    """The images that were left out, once each, by their place among the few."""


def save(stage: Stage, state: AdapterState) -> None:
    """Replace the stage's checkpoint by ``state``, atomically."""
    bad = json.dumps([asdict(record) for record in state.bad]).encode()
    tensors: dict[str, Tensor] = {f"params.{name}": parameter for name, parameter in state.params.items()}
    for name, parameter in state.params.items():
        for key, value in state.optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{name}/{key}"] = torch.as_tensor(value)
    counts = {name: torch.tensor(getattr(state, name), dtype=torch.float64) for name in _NUMBERS}
    stage.save_tensors(NAME, {**tensors, **counts, "bad": torch.tensor(list(bad), dtype=torch.uint8)})


def exists(stage: Stage) -> bool:
    """Whether the stage has a checkpoint."""
    return (stage.path / FILE).exists()


def restore(stage: Stage, state: AdapterState) -> None:
    """Fill ``state`` in place from the stage's checkpoint."""
    with stage.understanding():
        _fill(state, stage.load_tensors(NAME))


def _fill(state: AdapterState, stored: Mapping[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for number, (name, parameter) in enumerate(state.params.items()):
            parameter.copy_(stored[f"params.{name}"])
            prefix = f"optimiser.{name}/"
            own = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            if own:
                slots[number] = own
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": slots})
    for name, kind in _NUMBERS.items():
        setattr(state, name, kind(stored[name].item()))
    state.bad = [BadImageRecord(**record) for record in json.loads(bytes(stored["bad"].tolist()))]

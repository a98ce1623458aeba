"""Checkpoints as the official MaPLe code leaves them: Dassl's layout, half precision, the whole CLIP, live objects."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae.adapters import AdaptedCLIP


def official_state(adapted: AdaptedCLIP) -> dict[str, Tensor]:
    """The state dict of the official model: prompts, token embeddings of the classes trained on, and CLIP."""
    state = {f"prompt_learner.{name}": value.detach() for name, value in adapted.trainable().items()}
    width = adapted.trainable()["ctx"].shape[1]
    state["prompt_learner.token_prefix"] = torch.zeros(7, 1, width)
    state["prompt_learner.token_suffix"] = torch.zeros(7, 74, width)
    for name, value in adapted.clip.model.state_dict().items():
        if name.startswith("visual."):
            state[name.replace("visual.", "image_encoder.", 1)] = value
        elif name == "logit_scale":
            state[name] = value
        else:
            state[f"text_encoder.{name}"] = value
    return state


def write_official(adapted: AdaptedCLIP, file: Path, epoch: int = 5, **changes: Any) -> Path:
    """``changes`` replace entries of the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    optimiser, schedule = trained_with(list(adapted.trainable().values()))
    state = OrderedDict((name, value.half()) for name, value in official_state(adapted).items())
    content = {"state_dict": state, "epoch": epoch, "optimizer": optimiser, "scheduler": schedule, "val_result": 81.5}
    torch.save({**content, **changes}, file)
    return file


def trained_with(parameters: list[torch.nn.Parameter]) -> tuple[dict[str, Any], dict[str, Any]]:
    """State of SGD with momentum, and of a warm-up schedule: its successor is saved as an object that holds the
    optimiser, another object."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters[:2]]
    optimiser = torch.optim.SGD(copies, lr=0.0035, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 5)
    sum(p.sum() for p in copies).backward()
    optimiser.step()
    successor.step()
    schedule = {"successor": successor, "warmup_epoch": 1, "cons_lr": 1e-5, "base_lrs": [0.0035], "last_epoch": 5}
    return optimiser.state_dict(), schedule

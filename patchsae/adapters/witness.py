"""A few weights by which a file of learned tensors knows the CLIP that they were learned on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from patchsae.models.clip import SplitCLIP

ENCODERS = ("image_encoder.", "text_encoder.")  # how the names of witnesses begin
SAMPLES = 64
# The rounding of bfloat16 is 0.4 %; the weights of two trainings have nothing in common.
TOLERANCE = 0.02


def witnesses(clip: SplitCLIP) -> dict[str, Tensor]:
    """Weights of both towers under the names that the official MaPLe code gives them."""
    visual: Any = clip.model.visual
    text: Any = getattr(clip.model, "text", clip.model)
    found = {"image_encoder.conv1.weight": visual.conv1.weight}
    towers = [("image_encoder", visual)] + ([("text_encoder", text)] if hasattr(text, "token_embedding") else [])
    for name, tower in towers:
        last = len(tower.transformer.resblocks) - 1
        path = f"transformer.resblocks.{last}.mlp.c_proj.weight"
        found[f"{name}.{path}"] = tower.get_parameter(path)
    return found


def samples(clip: SplitCLIP) -> dict[str, Tensor]:
    """Up to 64 entries of each witness, float32 on the CPU."""
    return {name: _sample(weight) for name, weight in witnesses(clip).items()}


def require_same_clip(clip: SplitCLIP, stored: Mapping[str, Tensor], what: str) -> None:
    """ValueError if a witness among ``stored`` (whole, or the samples of it) is another than the CLIP's.

    Learned tensors mean nothing beside other weights, and nothing but a low accuracy would show it. Witnesses that are
    not stored are not asked for.
    """
    for name, weight in witnesses(clip).items():
        if name not in stored:
            continue
        theirs = stored[name]
        expected = _sample(weight)
        fits = tuple(theirs.shape) in (tuple(weight.shape), tuple(expected.shape))
        if not fits or not _near(_sample(theirs), expected):
            shape = "" if fits else f" has shape {tuple(theirs.shape)}, here {tuple(weight.shape)}: it"
            raise ValueError(
                f"{what} was learned on another CLIP than {clip.name!r} (pretrained={clip.pretrained!r}): "
                f"{name}{shape} differs. Load the CLIP that it was learned on"
            )


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    index = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64).long()
    return flat[index.to(flat.device)].float().cpu()


def _near(theirs: Tensor, ours: Tensor) -> bool:
    return bool((theirs - ours).norm() <= TOLERANCE * ours.norm())

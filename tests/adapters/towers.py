"""Small CLIPs of many shapes, and tensors at random for the adapters on them."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from patchsae.adapters import AdaptedCLIP, create
from patchsae.models.clip import SplitCLIP, load_clip
from tests.small_clips import TEXT, VISION, model_config, randomise

NAMES = ["tabby cat", "dog", "steam_engine"]
# Each differs from the others in depths, widths, heads, patches, activation or the way text is pooled.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"text": {"layers": 3}},
    "quick_gelu": {"vision": {"layers": 3}, "text": {"layers": 3}, "quick_gelu": True},
    "more_text": {"vision": {"layers": 2, "width": 16}, "text": {"layers": 4, "width": 24, "heads": 3}},
    "more_vision": {"vision": {"layers": 5, "patch_size": 16, "head_width": 16}, "text": {"layers": 2}},
    "custom_text": {"text": {"layers": 2, "context_length": 20}, "custom_text": True},
    "narrow_image": {"vision": {"image_size": [16, 40]}, "text": {"layers": 2}},
}


def make_clip(
    shape: str = "plain", layer: int = -2, seed: int = 0, dtype: torch.dtype = torch.float32, variant: str = ""
) -> SplitCLIP:
    """A CLIP of `SHAPES`, or with ``variant`` one of `tests.small_clips`; random weights in every entry.

    Those that differ in their layer alone share the weights.
    """
    clip = copy.copy(load(shape, seed, dtype, variant))
    clip.layer = layer % clip.layers
    return clip


@lru_cache(maxsize=64)
def load(shape: str, seed: int, dtype: torch.dtype, variant: str) -> SplitCLIP:
    with TemporaryDirectory() as folder:
        write_clip(Path(folder), model_config(variant) if variant else config_of(shape), seed)
        clip = load_clip(f"local-dir:{folder}", device="cpu", dtype=dtype)
        assert clip.tokenizer(["a"]).shape[0] == 1  # read while the folder is there
        return clip


def config_of(shape: str) -> dict[str, Any]:
    changes = dict(SHAPES[shape])
    vision, text = {**VISION, **changes.pop("vision", {})}, {**TEXT, **changes.pop("text", {})}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **changes}


def write_clip(folder: Path, config: dict[str, Any], seed: int) -> None:
    record = {"model_cfg": config, "preprocess_cfg": {"interpolation": "bilinear"}}
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    randomise(model, seed)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def make_adapter(kind: str, clip: SplitCLIP, config: Any = None, names: list[str] | None = None) -> AdaptedCLIP:
    """An adapter whose learned tensors are all at random, as after training."""
    adapted = create(kind, clip, names or NAMES, config)
    shake(adapted)
    return adapted


@torch.no_grad()
def shake(adapted: AdaptedCLIP, spread: float = 0.3, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.trainable().values():
        parameter.add_(spread * torch.randn(parameter.shape, generator=generator))


def make_float64(shape: str = "plain", layer: int = -2) -> SplitCLIP:
    """A CLIP of its own in float64, which `load_clip` does not offer."""
    clip = make_clip(shape, layer)
    clip.model = copy.deepcopy(clip.model).double()
    clip.dtype = torch.float64
    return clip


def float64(adapted: AdaptedCLIP) -> AdaptedCLIP:
    """The adapter with its learned tensors in float64, in place."""
    for parameter in adapted.trainable().values():
        parameter.data = parameter.data.double()
    return adapted

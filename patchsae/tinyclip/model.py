"""Small open_clip models in open_clip's own local-dir layout: made, read and written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from patchsae.models import clip_config
from patchsae.models.clip import load_clip
from patchsae.models.clip_weights import LOCAL_DIR
from patchsae.tinyclip.config import TinyClipConfig

CONFIG_FILE = clip_config.FILE
WEIGHTS_FILE = "open_clip_model.safetensors"
VOCABULARY = 49_408  # ids of CLIP's byte-pair tokenizer

PREPROCESS = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def new_model(config: TinyClipConfig) -> CLIP:
    """An open_clip CLIP with random weights drawn from torch's current generator.

    The patches' position embeddings start as sines and cosines of row and column (Beyer, Zhai, Kolesnikov 2022), which
    lets a small vision transformer tell neighbours from the first step.
    """
    model = CLIP(**open_clip_config(config))
    with torch.no_grad():
        model.visual.positional_embedding[0] = 0
        model.visual.positional_embedding[1:] = _sines(config.image_size // config.patch_size, config.width)
    return model


def load_model(directory: Path | str) -> tuple[CLIP, dict[str, Any]]:
    """(model in float32, its `model_cfg`) from a local-dir checkpoint.

    Raises:
        FileNotFoundError: a missing configuration or weights file.
        ValueError: a tower that is not open_clip's own CLIP, or as `load_clip`.
    """
    directory = Path(directory)
    model = load_clip(f"{LOCAL_DIR}{directory}", layer=-1, device="cpu").model
    if type(model) is not CLIP:
        raise ValueError(f"{directory} holds a {type(model).__name__}; expected open_clip's own CLIP")
    return model.requires_grad_(True), clip_config.read_config(directory / CONFIG_FILE).model


def save_model(model: CLIP, model_config: Mapping[str, Any], out: Path | str, record: Mapping[str, Any]) -> None:
    """Writes `out`/{open_clip_config.json, open_clip_model.safetensors (float16), training.json}.

    Everything is written next to `out` first. A new directory appears by one rename; in an existing one each file is
    replaced by a rename, and files of other names stay.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        staged.chmod(0o755)
        state = {name: value.detach().to(torch.float16).contiguous() for name, value in model.state_dict().items()}
        save_file(state, staged / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_json(staged / CONFIG_FILE, {"model_cfg": dict(model_config), "preprocess_cfg": PREPROCESS})
        _write_json(staged / "training.json", record)
        (staged / WEIGHTS_FILE).chmod(0o644)
        if not out.exists():
            staged.rename(out)
            return
        for file in sorted(staged.iterdir()):
            os.replace(file, out / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def open_clip_config(config: TinyClipConfig) -> dict[str, Any]:
    """The `model_cfg` of open_clip for these sizes."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "width": config.width,
            "layers": config.layers,
            "head_width": config.head_width,
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": VOCABULARY,
            "width": config.text_width,
            "heads": max(1, config.text_width // 32),
            "layers": config.text_layers,
        },
    }


def preprocess(model: CLIP) -> Callable[[Image.Image], Tensor]:
    """PIL image -> float [3, H, W], as the saved configuration says."""
    settings = PreprocessCfg(size=model.visual.image_size[0], **PREPROCESS)
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(settings, is_train=False)
    return transform


def _sines(side: int, width: int) -> Tensor:
    """Positions of a side x side grid in raster order, [side * side, width]."""
    frequency = 100.0 ** -torch.linspace(0, 1, width // 4)
    angle = torch.arange(side)[:, None] * frequency  # [side, width / 4]
    one = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return torch.cat([rows, columns], 2).flatten(0, 1)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

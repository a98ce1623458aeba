"""Small open_clip models with random weights in every entry, written in open_clip's local-dir layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
COCA = {
    "custom_text": True,
    "multimodal_cfg": {"context_length": 76, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2},
}
COCA_TEXT = {"context_length": 76, "embed_cls": True, "output_tokens": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "layer_scale": {"vision": {"ls_init_value": 0.1}},
    "average_pool": {"vision": {"pool_type": "avg"}},
    "no_ln_pre": {"vision": {"no_ln_pre": True}},
    "ln_after_pool": {"vision": {"final_ln_after_pool": True}},
    "clipa": {"vision": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
    "non_square": {"vision": {"image_size": [16, 40]}},
    "sin_cos": {"vision": {"pos_embed_type": "sin_cos_2d"}},
    "custom_block": {"vision": {"qk_norm": True, "scale_fc": True}},
    "attentional_pool": {"vision": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3}},
    "custom_text": {"custom_text": True},
    "coca": {
        **COCA,
        "vision": {"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3},
        "text": COCA_TEXT,
    },
    "coca_token": {**COCA, "vision": {"output_tokens": True}, "text": COCA_TEXT},
}


def model_config(variant: str) -> dict[str, Any]:
    """open_clip's model_cfg of a variant."""
    changes = dict(VARIANTS[variant])
    vision, text = {**VISION, **changes.pop("vision", {})}, {**TEXT, **changes.pop("text", {})}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **changes}


def write_clip(directory: Path, variant: str = "gelu", seed: int = 0) -> Path:
    """Write a model whose biases, norms and scales are all random, so that no term can vanish unnoticed."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {"model_cfg": model_config(variant), "preprocess_cfg": {"interpolation": "bilinear"}}
    (directory / "open_clip_config.json").write_text(json.dumps(record))
    model = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
    randomise(model, seed)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, directory / "open_clip_model.safetensors")
    return directory


def randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = 0.05 if "token_embedding" in name else parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            centre = 1.0 if name.endswith("weight") and parameter.dim() == 1 else 0.0
            if not name.startswith("logit") and parameter.requires_grad:
                parameter.copy_(centre + spread * noise)


def pixels(count: int, size: tuple[int, int] = (32, 32), seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))

"""Ours as dictionary_learning's `load_dictionary` opens them, with the same latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae.disk.atomic import replacing, write_text
from patchsae.models.checkpoints import holds
from patchsae.models.checkpoints.fold import row_norms, unsubtracted
from patchsae.models.sae_config import SAEConfig

WEIGHTS, CONFIG = "ae.pt", "config.json"
TRAINERS = {  # by which others recognise a class
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}
UNIT = 5e-6  # how far from length 1 the rows may be that the library's loader leaves as they are


def write(config: SAEConfig, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``ae.pt`` and ``config.json``. Raises ValueError for a SAE that no class of theirs can be."""
    holds.require(config, "dictionary_learning", ("relu", "topk", "jumprelu"))
    kind = _class_for(config, state)
    k = _k(config)
    with replacing(folder / WEIGHTS) as temporary:
        torch.save(_linear(kind, state, k) if kind != "JumpReluAutoEncoder" else _jumprelu(state), temporary)
    write_text(folder / CONFIG, json.dumps({"trainer": _trainer(kind, config, k)}, indent=4) + "\n")


def _class_for(config: SAEConfig, state: Mapping[str, Tensor]) -> str:
    """The class that has this SAE's latents when the library loads it.

    The loader of AutoEncoder scales latents unless the rows of W_dec are of length 1. BatchTopKSAE has one threshold,
    and a k of its training. JumpReluAutoEncoder does not subtract b_dec, and with thresholds of 0 it is ReLU.
    """
    if config.activation == "topk":
        return "AutoEncoderTopK"
    if config.activation == "relu":
        is_unit = bool(((row_norms(state["W_dec"]) - 1).abs() < UNIT).all())
        return "AutoEncoder" if is_unit else "JumpReluAutoEncoder"
    is_one = bool((state["threshold"] == state["threshold"][0]).all())
    return "BatchTopKSAE" if is_one and _k(config) is not None else "JumpReluAutoEncoder"


def _k(config: SAEConfig) -> int | None:
    """That of a top-k, or with which a BatchTopKSAE was trained; None where there is none."""
    k = config.metadata.get("l0") if config.k is None else config.k
    return k if isinstance(k, int) and 1 <= k <= config.d_sae else None


def _linear(kind: str, state: Mapping[str, Tensor], k: int | None) -> dict[str, Tensor]:
    """The state dict of AutoEncoder, AutoEncoderTopK and BatchTopKSAE."""
    found = {
        "encoder.weight": state["W_enc"].T.contiguous(),
        "encoder.bias": state["b_enc"],
        "decoder.weight": state["W_dec"].T.contiguous(),
        "bias" if kind == "AutoEncoder" else "b_dec": state["b_dec"],
    }
    if kind == "AutoEncoder":
        return found
    threshold = state["threshold"][0].clone() if "threshold" in state else torch.tensor(-1.0)  # not set
    return found | {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold}


def _jumprelu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: state[name] for name in ("W_enc", "W_dec", "b_dec")}
    threshold = state.get("threshold", torch.zeros_like(state["b_enc"]))
    return {**plain, "b_enc": unsubtracted(state), "threshold": threshold}


def _trainer(kind: str, config: SAEConfig, k: int | None) -> dict[str, Any]:
    """What is looked up of the training: by `load_dictionary` the class and k."""
    said = config.metadata
    layer = said.get("layer")
    after_a_block = None if layer is None else f"resid_post_layer_{layer}"
    return {
        "trainer_class": TRAINERS[kind],
        "dict_class": kind,
        "activation_dim": config.d_in,
        "dict_size": config.d_sae,
        **({"k": k} if kind in ("AutoEncoderTopK", "BatchTopKSAE") else {}),
        "layer": layer,
        "lm_name": said.get("model"),
        "submodule_name": said.get("hook", after_a_block),
        **{key: said[key] for key in ("pretrained", "tokens") if key in said},
    }

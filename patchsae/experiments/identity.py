"""What a result was made from: the settings by which a resumed stage knows that nothing was swapped underneath it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from patchsae.clip import SplitCLIP
from patchsae.data import ImageDataset
from patchsae.sae import SparseAutoencoder

_DIGITS = 16


def stage_config(options: Any, settings: Mapping[str, Any] | None, **made_from: Any) -> dict[str, Any]:
    """The configuration of a stage: the caller's settings, the experiment's options, and what it is made from."""
    return {**(settings or {}), **asdict(options), "made_from": made_from}


def describe_model(clip: SplitCLIP) -> dict[str, Any]:
    """Name, block and weights of a model. Where its files lie does not matter."""
    return {"name": clip.name, "layer": clip.layer, "weights": fingerprint(clip.model.state_dict())}


def describe_sae(sae: SparseAutoencoder) -> dict[str, Any]:
    """Sizes, activation and weights of an autoencoder."""
    sizes = {name: getattr(sae.config, name) for name in ("d_in", "d_sae", "activation", "k")}
    return {**sizes, "weights": fingerprint(sae.state_dict())}


def describe_images(dataset: ImageDataset) -> dict[str, Any]:
    """Name, size and contents of a dataset."""
    return {"name": dataset.name, "images": len(dataset), "fingerprint": dataset.fingerprint}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that depend on every name, shape, dtype and bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]

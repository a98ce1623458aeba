"""What a result was made from: the settings by which a resumed stage knows that nothing was swapped underneath it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchsae.data import ImageDataset
from patchsae.disk.hashing import fingerprint
from patchsae.experiments.any_clip import AnyCLIP, kind_of
from patchsae.models.sae import SparseAutoencoder


def describe_model(clip: AnyCLIP) -> dict[str, Any]:
    """Name, block, weights and adapter of a model. Where its files lie does not matter."""
    about = {"name": clip.name, "layer": clip.layer, "weights": clip.fingerprint}
    kind = kind_of(clip)
    return about if kind is None else {**about, "adapter": kind}


def describe_sae(sae: SparseAutoencoder) -> dict[str, Any]:
    """Sizes, activation and weights of an autoencoder, and what it does to its tokens where it does something."""
    sizes = {name: getattr(sae.config, name) for name in ("d_in", "d_sae", "activation", "k")}
    special = {"normalise": sae.config.normalise, "soft_cap": sae.config.soft_cap}
    declared = {name: value for name, value in special.items() if value not in ("none", None)}
    return {**sizes, **declared, "weights": fingerprint(sae.state_dict())}


def describe_images(dataset: ImageDataset) -> dict[str, Any]:
    """Name, size and contents of a dataset."""
    return {"name": dataset.name, "images": len(dataset), "fingerprint": dataset.fingerprint}


def describe_sources(clip: AnyCLIP, sae: SparseAutoencoder, dataset: ImageDataset) -> dict[str, Any]:
    """What an extraction is made of: {"clip": ..., "sae": ..., "dataset": ...}."""
    return {"clip": describe_model(clip), "sae": describe_sae(sae), "dataset": describe_images(dataset)}


def require_same_models(what: str, before: Mapping[str, Any], now: Mapping[str, Any], again: str) -> None:
    """ValueError if a result was made from another autoencoder, CLIP or block than those at hand.

    what: how the message begins ("rankings is"). before, now: "clip" and "sae" as `describe_sources` has them; what
    ``before`` lacks counts as another. again: the commands that make the result anew.
    """
    hints = {
        "sae": "the autoencoder was trained again, or another was given",
        "clip": "other weights, another block or another dtype",
    }
    for part, hint in hints.items():
        theirs, ours = before.get(part, {}), now[part]
        # A name may be a path, and a folder may have moved
        changed = [key for key in ours if key != "name" and (key not in theirs or theirs[key] != ours[key])]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{what} of another {part} than the one at hand ({hint}): {key} was "
                f"{theirs.get(key, 'not recorded')}, now {ours[key]}. Run {again} first"
            )

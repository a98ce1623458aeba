"""PatchSAE: sparse autoencoders on the patch tokens of a CLIP vision transformer.

Names are imported on first use, so that ``import patchsae`` and ``patchsae --help`` do not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchsae.adapters import load_adapter
    from patchsae.clip import SplitCLIP, load_clip
    from patchsae.data import load_image, open_images
    from patchsae.maple import load_maple
    from patchsae.sae import SAEConfig, SparseAutoencoder, load_sae
    from patchsae.steering import steer

_HOME = {
    "SplitCLIP": "patchsae.clip",
    "load_clip": "patchsae.clip",
    "SAEConfig": "patchsae.sae",
    "SparseAutoencoder": "patchsae.sae",
    "load_sae": "patchsae.sae",
    "steer": "patchsae.steering",
    "load_image": "patchsae.data",
    "open_images": "patchsae.data",
    "load_adapter": "patchsae.adapters",
    "load_maple": "patchsae.maple",
}
_PACKAGES = ("adapters", "adapting", "data", "experiments", "report", "training")

__all__ = [
    "SAEConfig",
    "SparseAutoencoder",
    "SplitCLIP",
    "load_adapter",
    "load_clip",
    "load_image",
    "load_maple",
    "load_sae",
    "open_images",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"patchsae.{name}")
    raise AttributeError(f"module 'patchsae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])

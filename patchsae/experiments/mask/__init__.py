"""`patchsae mask`: CLIP classifies with the top latents kept or ablated, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.mask.experiment import run as run
    from patchsae.experiments.mask.result import MaskResult as MaskResult

_HOMES = {"run": "experiment", "MaskResult": "result"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

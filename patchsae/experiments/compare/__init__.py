"""`patchsae compare`: two models, or two datasets, through one autoencoder, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.compare.experiment import run as run
    from patchsae.experiments.compare.result import Comparison as Comparison
    from patchsae.experiments.compare.side import Side as Side

_HOMES = {"run": "experiment", "Side": "side", "Comparison": "result"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

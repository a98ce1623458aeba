"""The measuring half of `patchsae sweep`: sparsity against quality of many autoencoders, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.frontier.experiment import run as run

_HOMES = {"run": "experiment"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

"""`patchsae classes`: the latents ranked by class, by dataset and at random, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.classes.experiment import run as run
    from patchsae.experiments.classes.result import Rankings as Rankings

_HOMES = {"run": "experiment", "Rankings": "result"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

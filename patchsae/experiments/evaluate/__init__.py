"""`patchsae evaluate`: how good an autoencoder is, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.evaluate.experiment import run as run
    from patchsae.experiments.evaluate.result import EvaluateResult as EvaluateResult

_HOMES = {"run": "experiment", "EvaluateResult": "result"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

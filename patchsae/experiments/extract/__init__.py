"""`patchsae extract`: the latents of a dataset in one pass, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.extract.experiment import run as run
    from patchsae.experiments.extract.result import Extraction as Extraction

_HOMES = {"run": "experiment", "Extraction": "result"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

"""`patchsae explain`: the top latents of pictures, and what only that needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.experiments.explain.experiment import run as run
    from patchsae.experiments.explain.result import References as References

_HOMES = {"run": "experiment", "References": "result"}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

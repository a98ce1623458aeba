"""Training a sparse autoencoder on a frozen CLIP's residual stream: losses, start, schedule, dead latents, trainer.

Submodules are imported on first use, so that reading the configuration (`patchsae.training.config`) needs no torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_SUBMODULES = (
    "checkpoint",
    "config",
    "dead",
    "estimate",
    "init",
    "learner",
    "loggers",
    "losses",
    "mesh",
    "metrics",
    "normalise",
    "parallel",
    "presets",
    "schedule",
    "section",
    "sizes",
    "sweep",
    "sweep_config",
    "taps",
    "timing",
    "trainer",
    "variants",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_SUBMODULES)

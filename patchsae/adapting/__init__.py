"""Adapting a frozen CLIP with few images: published recipes, training, evaluation on base, novel and other datasets.

Submodules are imported on first use, so that reading the configuration (`patchsae.adapting.config`) needs no torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_SUBMODULES = (
    "checkpoint",
    "config",
    "evaluation",
    "forward",
    "recipes",
    "results",
    "run",
    "schedule",
    "section",
    "task",
    "trainer",
    "views",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_SUBMODULES)

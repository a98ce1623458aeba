"""The experiments: each submodule has one `run(...)` that takes plain objects and leaves its results in a stage.

Submodules are imported on first use, so that reading the options (`patchsae.experiments.config`) needs no torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_SUBMODULES = (
    "adaptation",
    "cells",
    "classes",
    "config",
    "correlation",
    "crossed",
    "explain",
    "extract",
    "masking",
    "table",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_SUBMODULES)

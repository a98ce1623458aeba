"""The compiled extension: whether it is here, and which instruction-set level it runs at.

``PATCHSAE_CPU_LEVEL`` forces a lower level than the machine grants; it is read once, at import.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

VARIABLE = "PATCHSAE_CPU_LEVEL"

native: Any
try:
    native = importlib.import_module("patchsae_kernels._native")
    missing = ""
except ImportError as error:
    native = None
    missing = str(error)

available: bool = native is not None
_forced = os.environ.get(VARIABLE, "")
if available and _forced:
    try:
        native.set_level(_forced)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


def level() -> str:
    """The level in force, e.g. ``avx512bf16``; ``none`` without the extension."""
    return native.level() if available else "none"


def levels() -> list[str]:
    """The levels that this machine grants, ascending; empty without the extension."""
    return native.levels() if available else []


def why() -> str:
    """Why this level: ``no AMX in this CPU``, ``PATCHSAE_CPU_LEVEL (this machine grants avx512)``, what is missing."""
    if not available:
        return missing
    if level() != levels()[-1]:
        return f"{VARIABLE} (this machine grants {levels()[-1]})"
    return native.limit() or "the highest there is"

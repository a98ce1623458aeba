"""All attacks: a function that draws one case from a `random.Random`, tries it, and raises where a law is broken."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable

MODULES = ("kernels", "data", "runs", "files")
Attack = Callable[[random.Random], None]


def attacks() -> dict[str, Attack]:
    """Name ("runs.damaged_file") -> attack."""
    found: dict[str, Attack] = {}
    for module in MODULES:
        listed = importlib.import_module(f"tests.fuzz.{module}").ATTACKS
        found |= {f"{module}.{name}": attack for name, attack in listed.items()}
    return found


def try_case(name: str, seed: int, number: int, attack: Attack) -> None:
    """One case, the same for the same name, seed and number."""
    attack(random.Random(f"{name} {seed} {number}"))

"""The stages in their order, each with its share of the time. What one leaves unused the next ones have."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import NamedTuple

from benches.gpu.bench import Bench
from benches.gpu.records import Item


class Stage(NamedTuple):
    """A module of this package with ``items(bench)``, and its budget in seconds."""

    name: str
    seconds: float

    def items(self, bench: Bench) -> Iterator[Item]:
        yield from importlib.import_module(f"benches.gpu.stages.{self.name}").items(bench)


STAGES = (
    Stage("environment", 15),
    Stage("correctness", 90),
    Stage("determinism", 20),
    Stage("capture", 25),
    Stage("sanitizer", 60),
    Stage("table", 90),
    Stage("training", 86),
    Stage("designs", 36),
    Stage("masking", 34),
)
TOTAL = sum(stage.seconds for stage in STAGES)


def ends(started: float) -> dict[str, float]:
    """When each stage must be over, on the clock of ``started``."""
    passed, result = started, {}
    for stage in STAGES:
        passed += stage.seconds
        result[stage.name] = passed
    return result

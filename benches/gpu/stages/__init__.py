"""The stages in their order, each with its share of the time. What one leaves unused the next ones have."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from benches.gpu.records import Item

if TYPE_CHECKING:
    from benches.gpu.bench import Bench

GRACE = 12.0
"""Seconds that an item may run on after its stage is over, before the worker is ended."""


class Stage(NamedTuple):
    """A module of this package with ``items(bench)``, its budget in seconds, and what one of its items may take."""

    name: str
    seconds: float
    patience: float = 60.0

    def items(self, bench: Bench) -> Iterator[Item]:
        yield from importlib.import_module(f"benches.gpu.stages.{self.name}").items(bench)


# 300 s for what is looked at first, 240 s for the rest, `GRACE` included; on 16 cores. The first has a cold import of
# torch in it, and without its record no later run can go on.
STAGES = (
    Stage("environment", 40),
    Stage("warm", 50, patience=90),
    Stage("correctness", 62),
    Stage("table", 74),
    Stage("training", 56),
    Stage("masking", 18),
    Stage("designs", 84),
    Stage("determinism", 26),
    Stage("capture", 36),
    Stage("sanitizer", 94, patience=240),
)
NAMES = tuple(stage.name for stage in STAGES)


def chosen(names: Sequence[str]) -> tuple[Stage, ...]:
    """The stages of these names, in the order of the schedule."""
    return tuple(stage for stage in STAGES if stage.name in names)


def total(names: Sequence[str]) -> float:
    """Seconds that the schedule has for some stages."""
    return sum(stage.seconds for stage in chosen(names))


def ends(started: float, names: Sequence[str], seconds: float) -> dict[str, float]:
    """When each of the stages must be over, on the clock of ``started``.

    ``seconds`` cut the schedule at its end, `GRACE` before they have passed; the last stage has all that is left.
    """
    stages, last = chosen(names), started + seconds - GRACE
    result, passed = {}, started
    for stage in stages:
        passed += stage.seconds
        result[stage.name] = min(passed, last)
    return result | {stages[-1].name: last}

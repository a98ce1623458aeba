"""One case, measured: checked, then all sides timed in turn, in one process.

A speed-up counts only when the same run checked the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from patchsae.bench.case import Case, Opponent, Side
from patchsae.bench.findings import Findings, passed
from patchsae.bench.timing import Pace, Times, interleaved

OURS = "ours"


@dataclass(frozen=True)
class Measured:
    """``times``: of `OURS` and of `against` (0), (1), ...; empty where one of the findings is beyond its limit."""

    findings: Findings
    times: dict[str, Times] = field(default_factory=dict)


def against(number: int) -> str:
    """The key of an opponent."""
    return f"against {number}"


def measure(case: Case, inputs: Any, device: torch.device, pace: Pace) -> Measured:
    """Run every side once and check it, then time all of them; after a failed check nothing is run any more."""
    findings = checked(case, inputs)
    if not passed(findings):
        return Measured(findings)
    sides = {OURS: case.ours} | {against(i): opponent.side for i, opponent in enumerate(case.opponents)}
    return Measured(findings, timed(sides, inputs, device, case.pace or pace))


def checked(case: Case, inputs: Any) -> Findings:
    """What the checks say of our result and of those beside it."""
    found = case.ours.run(inputs, 0)
    findings = case.check(inputs, found) if case.check else ()
    for opponent in case.opponents:
        if passed(findings):
            findings += _compared(opponent, inputs, found)
    return findings


def timed(sides: Mapping[str, Side], inputs: Any, device: torch.device, pace: Pace) -> dict[str, Times]:
    """`interleaved` of sides that take their turn on the same inputs."""

    def call(side: Side) -> Callable[[int], Any]:
        return lambda turn: side.run(inputs, turn)

    return interleaved({key: call(side) for key, side in sides.items()}, device, pace)


def _compared(opponent: Opponent, inputs: Any, found: Any) -> Findings:
    theirs = opponent.side.run(inputs, 0)  # also without a check: it warms up
    return opponent.check(inputs, found, theirs) if opponent.check else ()

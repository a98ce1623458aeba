"""What a benchmark case is: ours, who it is measured against, and what says that both did the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from patchsae.bench.findings import Findings
from patchsae.bench.timing import Pace


class Side(NamedTuple):
    """Something to time: its name, its precision, and the work on the input set of a turn."""

    name: str
    precision: str
    run: Callable[[Any, int], Any]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.precision}" if self.precision else self.name


class Bar(NamedTuple):
    """``at_most``: our time is at most ``limit`` of theirs; otherwise their time is at least ``limit`` of ours."""

    at_most: bool
    limit: float

    @property
    def text(self) -> str:
        return f"at most {self.limit:g}x its time" if self.at_most else f"{self.limit:g}x faster"


class Opponent(NamedTuple):
    """Who ours is measured against; ``check(inputs, our result, their result)`` says that both did the same work."""

    side: Side
    bar: Bar | None = None
    check: Callable[[Any, Any, Any], Findings] | None = None


@dataclass(frozen=True)
class Case:
    """One op, or more than one; it is timed only when all checks pass, at the pace of the run or its own.

    Attributes:
        check: of our result alone, or None where the opponents' say enough.
    """

    name: str
    ours: Side
    opponents: tuple[Opponent, ...]
    check: Callable[[Any, Any], Findings] | None = None
    pace: Pace | None = None


def beside(
    name: str,
    ours: Callable[[Any], Any],
    baseline: Side,
    limit: Side,
    check: Callable[[Any, Any, Any], Findings],
) -> Case:
    """Ours, plain PyTorch, which ``check`` compares it with, and the `floor` that no implementation can pass."""
    against = Opponent(baseline, check=check), Opponent(limit)
    return Case(name, Side("ours", "", lambda inputs, _turn: ours(inputs)), against)


def floor(name: str, run: Callable[[Any], Any]) -> Side:
    """Only what cannot be left out: a product by the vendor's library, or a copy of the bytes that must move.

    The share of the limit is its time over ours.
    """
    return Side(name, "", lambda inputs, _turn: run(inputs))

"""What a benchmark case is: ours, who it is measured against, and what says that both did the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    check: Callable[[Any, Any], Findings] | None = None
    opponents: tuple[Opponent, ...] = ()
    pace: Pace | None = None

    def against(self, name: str, *opponents: Opponent) -> Case:
        """The same ours, measured."""
        return replace(self, name=name, opponents=opponents)

    def beside(self, name: str, baseline: Side, limit: Side, check: Callable[[Any, Any, Any], Findings]) -> Case:
        """Against plain PyTorch, which ``check`` compares it with, and the `floor` that no implementation can pass."""
        return self.against(name, Opponent(baseline, check=check), Opponent(limit))


def unchecked(run: Callable[[Any], Any]) -> Case:
    """A case to be measured `beside` others, whose results are all its check."""
    return Case("", side("ours", run))


def side(name: str, run: Callable[[Any], Any], precision: str = "") -> Side:
    """The same on every turn."""
    return Side(name, precision, lambda inputs, _turn: run(inputs))


def floor(name: str, run: Callable[[Any], Any]) -> Side:
    """Only what cannot be left out: a product by the vendor's library, or a copy of the bytes that must move.

    The share of the limit is its time over ours.
    """
    return side(name, run)

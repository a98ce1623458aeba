"""Times as a record has them: the measurement of a case, beside a second one of ours, and its bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benches.gpu.bench import Bench
from benches.gpu.records import Result
from patchsae.bench.case import Bar, Case, Opponent
from patchsae.bench.inputs import Problem
from patchsae.bench.measure import OURS, against, measure
from patchsae.bench.timing import Spread, Times, ratios

AGAIN = "ours again"


def measure_case(case: Case, problem: Problem | None, bench: Bench) -> Result:
    """Checked and timed; a failed check leaves the case untimed. What its sides held is given back."""
    again = replace(case, opponents=(*case.opponents, Opponent(case.ours)))
    try:
        measured = measure(again, problem, bench.device, bench.pace)
    finally:
        bench.release()
    return Result(measured.findings, as_data(case, measured.times) if measured.times else {})


def as_data(case: Case, times: dict[str, Times]) -> dict[str, Any]:
    """What a record says of a case and of ours a second time, which is timed as its last opponent."""
    number = len(case.opponents)
    return {
        **spreads({**times, AGAIN: times[against(number)]}, left_out=against(number)),
        "repeat": ratios(times[against(number)], times[OURS])._asdict(),
        "ours": {"name": case.ours.name, "precision": case.ours.precision},
        "against": [compared(o, times[OURS], times[against(i)]) for i, o in enumerate(case.opponents)],
        "peak_mb": times[OURS].peak_mb,
    }


def spreads(times: Mapping[str, Times], left_out: str = "") -> dict[str, Any]:
    """Medians and spreads in milliseconds by side, and the number of rounds."""
    medians = {key: t.spread._asdict() for key, t in times.items() if key != left_out}
    return {"milliseconds": medians, "rounds": len(next(iter(times.values())).milliseconds)}


def compared(opponent: Opponent, ours: Times, theirs: Times) -> dict[str, Any]:
    """Their times beside ours; the ratio is the way round in which the bar is stated, its median within rounds.

    ``lost_us``: microseconds by which ours would have to be shorter for the bar, by that ratio; negative: to spare.
    """
    bar = opponent.bar
    at_most = bar.at_most if bar else True
    ratio: Spread = ratios(ours, theirs) if at_most else ratios(theirs, ours)
    met = None if bar is None else (ratio.median <= bar.limit if at_most else ratio.median >= bar.limit)
    return {
        "name": opponent.side.name,
        "precision": opponent.side.precision,
        "milliseconds": theirs.spread._asdict(),
        "ratio_is": "ours / theirs" if at_most else "theirs / ours",
        "ratio": ratio._asdict(),
        "bar": bar.text if bar else "",
        "met": met,
        "lost_us": None if bar is None else 1e3 * _lost(bar, ratio.median, ours, theirs),
    }


def _lost(bar: Bar, ratio: float, ours: Times, theirs: Times) -> float:
    """Milliseconds."""
    if bar.at_most:
        return (ratio - bar.limit) * theirs.median
    return (1 - ratio / bar.limit) * ours.median

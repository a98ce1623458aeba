"""One line, measured: check, then time all sides in turn, then peak memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benches.gpu.bench import Bench
from benches.gpu.inputs import Problem
from benches.gpu.lines import Bar, Line, Opponent, Side
from benches.gpu.records import Result
from benches.gpu.timing import Pace, Spread, interleaved, ratios, spread
from patchsae.bench.measure import peak_mb

OURS, AGAIN = "ours", "ours again"


def measure_line(line: Line, problem: Problem, bench: Bench) -> Result:
    """A failed check leaves the line untimed."""
    found = line.ours.run(problem, 0)
    findings = line.check(problem, found)
    for opponent in line.opponents:
        if opponent.check is not None and all(finding.ok for finding in findings):
            findings += opponent.check(problem, found, opponent.side.run(problem, 0))
    del found
    if not all(finding.ok for finding in findings):
        return Result(findings)
    sides = {OURS: line.ours, AGAIN: line.ours}
    sides |= {f"against {i}": opponent.side for i, opponent in enumerate(line.opponents)}
    data = time_sides(sides, problem, bench, line.pace)
    data["ours"] = {"name": line.ours.name, "precision": line.ours.precision}
    data["against"] = [compared(o, f"against {i}", data) for i, o in enumerate(line.opponents)]
    data["peak_mb"] = peak_mb(lambda: line.ours.run(problem, 0), bench.device)
    del data["samples"]
    return Result(findings, data)


def time_sides(
    sides: Mapping[str, Side], problem: Problem | None, bench: Bench, pace: Pace | None = None
) -> dict[str, Any]:
    """Medians and spreads in milliseconds by key of ``sides``, the number of rounds, and every time as ``samples``."""
    calls = {key: _call(side, problem) for key, side in sides.items()}
    times = interleaved(calls, bench.device, pace or bench.pace)
    medians = {key: spread(values)._asdict() for key, values in times.items()}
    rounds = len(next(iter(times.values())))
    data: dict[str, Any] = {"milliseconds": medians, "rounds": rounds, "samples": times}
    if AGAIN in times:
        data["repeat"] = ratios(times[AGAIN], times[OURS])._asdict()
    return data


def _call(side: Side, problem: Any) -> Callable[[int], Any]:
    return lambda turn: side.run(problem, turn)


def compared(opponent: Opponent, key: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Their times beside ours; the ratio is the way round in which the bar is stated, its median within rounds.

    ``lost_us``: microseconds by which ours would have to be shorter for the bar, by that ratio; negative: to spare.
    """
    ours, theirs = data["samples"][OURS], data["samples"][key]
    bar = opponent.bar
    at_most = bar.at_most if bar else True
    ratio: Spread = ratios(ours, theirs) if at_most else ratios(theirs, ours)
    met = None if bar is None else (ratio.median <= bar.limit if at_most else ratio.median >= bar.limit)
    return {
        "name": opponent.side.name,
        "precision": opponent.side.precision,
        "milliseconds": data["milliseconds"][key],
        "ratio_is": "ours / theirs" if at_most else "theirs / ours",
        "ratio": ratio._asdict(),
        "bar": bar.text if bar else "",
        "met": met,
        "lost_us": None if bar is None else 1e3 * _lost(bar, ratio.median, ours, theirs),
    }


def _lost(bar: Bar, ratio: float, ours: list[float], theirs: list[float]) -> float:
    """Milliseconds."""
    if bar.at_most:
        return (ratio - bar.limit) * spread(theirs).median
    return (1 - ratio / bar.limit) * spread(ours).median

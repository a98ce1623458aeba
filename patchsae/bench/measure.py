"""The clock: checks an answer first, then times ours, the baseline and the floor in turn, in one process.

A speed-up counts only when the same run checked the result; medians of interleaved runs hold up on a noisy machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from patchsae.bench.case import Case

ENOUGH = 1.0
"""Seconds after which a case that is fast has been timed often enough."""
MOST_ROUNDS = 100


@dataclass(frozen=True)
class Record:
    """One op, measured.

    Attributes:
        milliseconds, baseline_milliseconds, floor_milliseconds: medians.
        ratio: baseline over ours, the median of the ratios within each round.
        share_of_limit: floor over ours, likewise.
        peak_mb: the most memory that one call of ours held beside what was there before it, in MB.
    """

    op: str
    size: str
    inputs: str
    device: str
    milliseconds: float
    baseline: str
    baseline_milliseconds: float
    ratio: float
    floor: str
    floor_milliseconds: float
    share_of_limit: float
    peak_mb: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(case: Case, inputs: Any, size: str, rounds: int = 5) -> Record:
    """Check one case, then time it ``rounds`` times, or more often where it is fast.

    AssertionError where ours and the baseline disagree.

    ``inputs`` has a ``device`` and a ``description``, beside what the case takes from it.
    """
    ours, baseline = case.ours(inputs), case.baseline.run(inputs)
    case.check(inputs, ours, baseline)
    del ours, baseline
    device: torch.device = inputs.device
    peak = peak_mb(lambda: case.ours(inputs), device)
    times: dict[str, list[float]] = {"ours": [], "baseline": [], "floor": []}
    calls = {"ours": case.ours, "baseline": case.baseline.run, "floor": case.floor.run}
    _timed(case.floor.run, inputs, device)  # the check has warmed up the other two
    started = time.perf_counter()
    while len(times["ours"]) < rounds or (time.perf_counter() - started < ENOUGH and len(times["ours"]) < MOST_ROUNDS):
        turn = list(calls) if len(times["ours"]) % 2 == 0 else list(calls)[::-1]  # nobody always finds a warm cache
        for name in turn:
            times[name].append(_timed(calls[name], inputs, device))
    return Record(
        op=case.name,
        size=size,
        inputs=inputs.description,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        milliseconds=1e3 * statistics.median(times["ours"]),
        baseline=case.baseline.name,
        baseline_milliseconds=1e3 * statistics.median(times["baseline"]),
        ratio=_median_ratio(times["baseline"], times["ours"]),
        floor=case.floor.name,
        floor_milliseconds=1e3 * statistics.median(times["floor"]),
        share_of_limit=_median_ratio(times["floor"], times["ours"]),
        peak_mb=peak,
        rounds=len(times["ours"]),
    )


def peak_mb(call: Callable[[], Any], device: torch.device) -> float:
    """The most memory held during a call beside what was held before it, in MB (device memory, or resident memory)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of the resident set
    before = _resident_kb("VmRSS")
    call()
    return (_resident_kb("VmHWM") - before) / 2**10


def _resident_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _timed(call: Callable[[Any], Any], inputs: Any, device: torch.device) -> float:
    """Seconds of one call; results are freed outside of the interval."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = call(inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))

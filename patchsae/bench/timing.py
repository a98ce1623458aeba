"""The clock: device events on a GPU, a host clock elsewhere; sides take turns within one run.

Medians of interleaved rounds hold up on a noisy machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

Call = Callable[[int], Any]
"""Does the work once; the argument is the number of the turn, by which it picks an input set."""


class Pace(NamedTuple):
    """How long to measure: rounds until ``seconds`` have passed, within limits."""

    seconds: float
    min_rounds: int
    max_rounds: int
    warm_ups: int


class Spread(NamedTuple):
    """Median with the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


@dataclass(eq=False)
class Times:
    """Milliseconds of every round of one side, and the most memory that a call held beside what was there, in MB."""

    milliseconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def spread(self) -> Spread:
        return spread(self.milliseconds)

    @property
    def median(self) -> float:
        return self.spread.median


def interleaved(sides: Mapping[str, Call], device: torch.device, pace: Pace) -> dict[str, Times]:
    """Every call of every side, A B C, C B A, A B C: nobody always finds a warm cache.

    Results are freed outside of the interval. Memory is looked at in the first round, before and after the interval.
    """
    clock = _device_clock(device) if device.type == "cuda" else _host_milliseconds
    for turn in range(pace.warm_ups):
        for call in sides.values():
            clock(call, turn)
    times = {name: Times() for name in sides}
    started = time.monotonic()
    for turn in range(pace.max_rounds):
        if turn >= pace.min_rounds and time.monotonic() - started > pace.seconds:
            break
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            _add(times[name], partial(clock, sides[name], turn), device)
    return times


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    found = list(values)
    if len(found) == 1:
        return Spread(*3 * found)
    tenths = statistics.quantiles(found, n=10, method="inclusive")
    return Spread(statistics.median(found), tenths[0], tenths[-1])


def ratios(a: Times, b: Times) -> Spread:
    """``a / b`` within each round."""
    return spread(x / y for x, y in zip(a.milliseconds, b.milliseconds, strict=True))


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


def _add(times: Times, timed: Callable[[], float], device: torch.device) -> None:
    """One more round of a side."""
    if times.milliseconds:
        times.milliseconds.append(timed())
    else:
        times.peak_mb = peak_mb(lambda: times.milliseconds.append(timed()), device)


def _resident_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _device_clock(device: torch.device) -> Callable[[Call, int], float]:
    """A write of twice the L2 goes before every call: it empties the cache and lets the host run ahead."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size or 64 << 20
    flush = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def milliseconds(call: Call, turn: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.fill_(turn % 251)
        start.record()
        result = call(turn)
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end))

    return milliseconds


def _host_milliseconds(call: Call, turn: int) -> float:
    start = time.perf_counter()
    result = call(turn)
    elapsed = time.perf_counter() - start
    del result
    return 1e3 * elapsed

"""The clock: device events on a GPU, a host clock elsewhere; sides take turns within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
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


def interleaved(sides: Mapping[str, Call], device: torch.device, pace: Pace) -> dict[str, list[float]]:
    """Milliseconds of every call of every side, A B C A B C; results are freed outside of the interval."""
    clock = _device_clock(device) if device.type == "cuda" else _host_milliseconds
    for turn in range(pace.warm_ups):
        for call in sides.values():
            clock(call, turn)
    times: dict[str, list[float]] = {name: [] for name in sides}
    started = time.monotonic()
    for turn in range(pace.max_rounds):
        if turn >= pace.min_rounds and time.monotonic() - started > pace.seconds:
            break
        for name, call in sides.items():
            times[name].append(clock(call, turn))
    return times


def spread(values: list[float]) -> Spread:
    """Of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(statistics.median(values), tenths[0], tenths[-1])


def ratios(a: list[float], b: list[float]) -> Spread:
    """``a / b`` within each round."""
    return spread([x / y for x, y in zip(a, b, strict=True)])


def _device_clock(device: torch.device) -> Callable[[Call, int], float]:
    """A write of twice the L2 goes before every call: it empties the cache and lets the host run ahead."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size or 64 << 20
    flush = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def milliseconds(call: Call, turn: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.fill_(turn % 251)
        start.record()
        result = call(turn)
        end.record()
        end.synchronize()
        del result
        return start.elapsed_time(end)

    return milliseconds


def _host_milliseconds(call: Call, turn: int) -> float:
    start = time.perf_counter()
    result = call(turn)
    elapsed = time.perf_counter() - start
    del result
    return 1e3 * elapsed

"""What was measured of an op beside plain PyTorch and its floor, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import patchsae_kernels as pk
from patchsae.bench.case import Case
from patchsae.bench.findings import as_json, faults, passed
from patchsae.bench.measure import OURS, against, measure
from patchsae.bench.timing import Pace, ratios
from patchsae.disk import atomic, environment

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
        peak_mb, baseline_peak_mb: the most memory that one call held beside what was there before it, in MB.
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
    baseline_peak_mb: float
    rounds: int


def record(case: Case, inputs: Any, size: str, rounds: int = 5) -> Record:
    """Check a case with a baseline and a floor, then time it ``rounds`` times, or more often where it is fast.

    AssertionError where ours and the baseline disagree.

    ``inputs`` has a ``device`` and a ``description``, beside what the case takes from it.
    """
    device: torch.device = inputs.device
    measured = measure(case, inputs, device, Pace(ENOUGH, rounds, max(rounds, MOST_ROUNDS), warm_ups=0))
    if not passed(measured.findings):
        raise AssertionError(f"{case.name}: {faults(measured.findings)}")
    ours, baseline, floor = (measured.times[key] for key in (OURS, against(0), against(1)))
    baseline_side, floor_side = (opponent.side for opponent in case.opponents)
    return Record(
        op=case.name,
        size=size,
        inputs=inputs.description,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        milliseconds=ours.median,
        baseline=baseline_side.label,
        baseline_milliseconds=baseline.median,
        ratio=ratios(baseline, ours).median,
        floor=floor_side.label,
        floor_milliseconds=floor.median,
        share_of_limit=ratios(floor, ours).median,
        peak_mb=ours.peak_mb,
        baseline_peak_mb=baseline.peak_mb,
        rounds=len(ours.milliseconds),
    )


def save(records: Sequence[Record], json_file: Path) -> None:
    """Write the machine, the commit and the records, atomically."""
    machine = pk.describe() | {"cpu_model": _cpu_model(), "torch_threads": torch.get_num_threads()}
    found = [asdict(record) for record in records]
    document = {"machine": machine, "commit": environment.git_commit(), "records": found}
    atomic.write_text(json_file, as_json(document))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"

"""Registers and shared memory as they were when somebody last looked: a rise that nobody meant does not pass.

One file for each version of Triton under ``recorded/``, with the kernels at the paper's shape: registers of a thread
and bytes of shared memory of every configuration, named by a hash. ``python -m tests.gate --record`` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import triton

from tests.gate.cases import Case
from tests.gate.compiling import Resources

FILE = Path(__file__).with_name("recorded") / f"triton-{'.'.join(triton.__version__.split('.')[:2])}.json"
RISE = 1.1
AGAIN = "`python -m tests.gate --record` records anew what is meant"
Record = dict[str, dict[str, list[int]]]


def complaints(case: Case, used: Resources) -> list[str]:
    """Why a case at the paper's shape may not be shipped.

    A configuration without a record is held to the largest figures of its kernel on the part. Under a version of Triton
    without a file nothing is held to anything.
    """
    record = recorded()
    if record is None:
        return []
    configurations = record.get(place(case))
    if configurations is None:
        return [f"{place(case)}: no record of it; {AGAIN}"]
    largest = [max(figures) for figures in zip(*configurations.values(), strict=True)]
    before = configurations.get(name(case), largest)
    pairs = zip(("registers", "bytes of shared memory"), before, (used.registers, used.shared), strict=True)
    return [
        f"{place(case)}: {now} {what}, recorded were {old}; expected at most 10 % more; {AGAIN} ({case.configuration})"
        for what, old, now in pairs
        if now > RISE * old
    ]


@cache
def recorded() -> Record | None:
    return json.loads(FILE.read_text()) if FILE.exists() else None


def write(found: Iterable[tuple[Case, Resources]]) -> None:
    """Replace this version's file."""
    record: Record = {}
    for case, used in found:
        record.setdefault(place(case), {})[name(case)] = [used.registers, used.shared]
    lines = [f"{json.dumps(key)}: {json.dumps(dict(sorted(record[key].items())))}" for key in sorted(record)]
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def place(case: Case) -> str:
    return f"{case.name} on {case.part.name}"


def name(case: Case) -> str:
    return hashlib.sha256(case.configuration.encode()).hexdigest()[:8]

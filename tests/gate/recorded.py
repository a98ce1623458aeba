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
from triton import knobs

from tests.gate import compiling, races
from tests.gate.cases import Case
from tests.gate.compiling import Resources

FILE = Path(__file__).with_name("recorded") / f"triton-{'.'.join(triton.__version__.split('.')[:2])}.json"
RISE = 1.1
AGAIN = "`python -m tests.gate --record` records anew what is meant"
ATTEMPTS = 3
"""Compilations of a case that is refused: Triton's passes do not come out the same every time, with some threads once
in thousands of cases."""
Record = dict[str, dict[str, list[int]]]


def refusals(case: Case, used: Resources, at_the_papers_shape: bool) -> list[str]:
    """Why a case may not be shipped, if that is so each time that it is compiled."""
    found: list[str] = []
    for attempt in range(ATTEMPTS):
        if attempt > 0:
            used = _again(case)
        found = compiling.complaints(case, used)
        if at_the_papers_shape:
            found += complaints(case, used)
            found += [f"{place(case)}: {reason}" for reason in races.at_the_papers_shape(case.name, used.read_back)]
        if not found:
            break
    return found


def _again(case: Case) -> Resources:
    """Compiled anew, whatever the cache holds."""
    before = knobs.compilation.always_compile
    knobs.compilation.always_compile = True
    try:
        return compiling.resources.__wrapped__(case)
    finally:
        knobs.compilation.always_compile = before


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

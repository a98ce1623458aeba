"""What a stage writes down: findings with their limits, times, and why something was left out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from patchsae.bench.findings import Findings, as_json, faults, passed
from patchsae.disk import atomic

PASSED, FAILED, ERROR, SKIPPED = "passed", "failed", "error", "skipped"
BAD = (FAILED, ERROR)
PREPARING = "preparing"
"""What a stage runs between two items."""


@dataclass(frozen=True)
class Result:
    """What an item found: numbers with limits, numbers without, or the reason why it was left out."""

    findings: Findings = ()
    data: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    @property
    def status(self) -> str:
        if self.skipped:
            return SKIPPED
        return PASSED if passed(self.findings) else FAILED

    @property
    def message(self) -> str:
        return self.skipped or faults(self.findings)


@dataclass(frozen=True)
class Item:
    """One thing that a stage does."""

    name: str
    run: Callable[[], Result]


@dataclass(frozen=True)
class Record:
    """One item, done.

    Attributes:
        sources: modules of the kernels that it started, and of the host code that started them.
        digest: of everything it was measured with, see `benches.gpu.sources`.
        taken_from: when the run began that measured it, if that was an earlier one.
    """

    stage: str
    name: str
    status: str
    seconds: float
    message: str = ""
    findings: tuple[dict[str, Any], ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    digest: str = ""
    taken_from: str = ""


def stage_file(out: Path, stage: str) -> Path:
    return out / "stages" / f"{stage}.json"


class StageFile:
    """The records of one stage on disk, complete after every item, with the name of the item that is running.

    Goes on from what an earlier worker left there.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        before = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "records": []}
        self.records = [Record(**record) for record in before["records"]]
        self._started = time.monotonic() - before["seconds"]

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.write(running="")

    def sort(self, names: Sequence[str]) -> None:
        """Bring the records into the order of ``names``; what an earlier run measured came first."""
        self.records.sort(key=lambda record: names.index(record.name) if record.name in names else len(names))

    def write(self, running: str, finished: bool = False) -> None:
        """``running``: what is about to run; the supervisor counts its time from now."""
        write_json(
            self.path,
            {
                "stage": self.stage,
                "seconds": round(time.monotonic() - self._started, 3),
                "finished": finished,
                "running": running,
                "since": time.time(),
                "records": [asdict(record) for record in self.records],
            },
        )


def done(stage: str, name: str, seconds: float, result: Result) -> Record:
    """The record of a result."""
    findings = tuple({**asdict(f), "ok": f.ok} for f in result.findings)
    return Record(stage, name, result.status, round(seconds, 3), result.message, findings, result.data)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """`as_json`, atomically; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, as_json(document))

"""Keeps the time and outlives the worker: an item that crashes or hangs costs itself, not the rest.

The worker runs the stages one after the other and writes each one's records after every item. When it dies, or is
ended because an item took longer than its stage has patience for, what it had written stands and a new worker goes on
with the next item; when it stays in a stage beyond its time, a new one goes on with the next stage. This process
imports no torch and never waits for the device.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.gpu import merging
from benches.gpu.collected import Collection, drawn
from benches.gpu.records import BAD, ERROR, PREPARING, stage_file, write_json
from benches.gpu.sources import ROOT
from benches.gpu.stages import GRACE, chosen, ends

CRASHES = 8
"""Workers that a stage may cost before it is given up."""
Start = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        out: folder of the stages' files.
        folder: where the results are collected, ``out`` or another.
        seconds: all that may pass.
        merge: results.json of an earlier run to go on with, or None.
    """

    out: Path
    folder: Path
    size: str
    device: str
    stages: tuple[str, ...]
    seconds: float
    merge: Path | None = None


def run(plan: Plan) -> int:
    """Run everything; prints the table and returns the exit status: 1 when a check failed or a stage did not finish.

    Raises:
        merging.Refused: the earlier run's results do not fit; nothing was written.
    """
    started = time.time()
    earlier = None if plan.merge is None else merging.read(plan.merge)
    if earlier is not None:
        merging.compare(earlier, plan.size, merging.this_machine(plan.device))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the worker is ended as well
    plan.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(plan.out / "stages", ignore_errors=True)
    head: dict[str, Any] = {"size": plan.size, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))}
    if earlier is not None:
        head["earlier"] = merging.take(earlier, plan.out, plan.stages)
    log = Log(plan.out / "workers.log")
    until = ends(started, plan.stages, plan.seconds)

    def start(names: Sequence[str]) -> subprocess.Popen[bytes]:
        return log.start([*_command(plan, started), *_stages_until(names, until)])

    collection = Collection(plan.out, plan.folder, log.path, head, plan.stages)
    try:
        supervise(collection, start, until, log.echo)
    finally:
        document = collection.write()
    print(drawn(document))
    return 1 if failed(document, plan.stages) else 0


class Log:
    """What the workers print: kept in a file, and shown as it comes."""

    def __init__(self, path: Path) -> None:
        self.path, self._shown = path, 0
        path.write_bytes(b"")

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A process that prints here and leads a process group of its own."""
        with self.path.open("ab") as file:
            return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)

    def echo(self) -> None:
        """Print what is new."""
        with self.path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        self._shown += len(new)
        print(new.decode(errors="replace"), end="", flush=True)


def _command(plan: Plan, started: float) -> list[str]:
    command = [sys.executable, "-m", "benches.gpu.worker", "--out", str(plan.out.resolve()), "--size", plan.size]
    return [*command, "--device", plan.device, "--started", repr(started), "--parent", str(os.getpid())]


def _stages_until(names: Sequence[str], until: Mapping[str, float]) -> list[str]:
    return ["--stages", *names, "--ends", *(repr(until[name]) for name in names)]


def supervise(
    collection: Collection, start: Start, until: Mapping[str, float], echo: Callable[[], None] = lambda: None
) -> None:
    """Start workers until every stage of ``until`` has been run or given up, and collect what they write."""
    remaining = [stage.name for stage in chosen(tuple(until))]
    crashes: Counter[str] = Counter()

    def look() -> None:
        echo()
        collection.refresh()

    while remaining:
        worker = start(remaining)
        try:
            remaining = _follow(collection.out, worker, remaining, until, crashes, look)
        finally:
            _end(worker)
            look()


def _follow(
    out: Path,
    worker: subprocess.Popen[bytes],
    names: list[str],
    until: Mapping[str, float],
    crashes: Counter[str],
    look: Callable[[], None],
) -> list[str]:
    """Watch one worker until it has run all stages or left one; returns what is left for the next one."""
    first, begun = names[0], time.time()
    while names:
        name = names[0]
        stage = _read(out, name)
        if stage["finished"]:
            names, begun = names[1:], time.time()
        elif time.time() > until[name] + GRACE:
            _blame(out, stage, "still running after its time")
            return names[1:]
        elif time.time() - max(stage["since"], begun) > chosen([name])[0].patience:
            return _gone(out, names, first, "took too long", crashes)
        elif worker.poll() is not None and not _read(out, name)["finished"]:
            return _gone(out, names, first, f"the worker ended with status {worker.returncode}", crashes)
        else:
            look()
            time.sleep(0.2)
    return names


def _gone(out: Path, names: list[str], first: str, reason: str, crashes: Counter[str]) -> list[str]:
    """The stages for the next worker, after one died or hung: the same, unless it could not even begin the first."""
    name = names[0]
    stage = _read(out, name)
    begun = stage["since"] > 0
    if not begun and name != first:
        return names  # it left between two stages
    crashes[name] += 1
    if stage["running"] or not begun:  # else it has recorded what ended it
        _blame(out, stage, reason)
    hopeless = not begun or stage["running"] == PREPARING or crashes[name] == CRASHES
    return names[1:] if hopeless else names


def _read(out: Path, name: str) -> dict[str, Any]:
    """What the workers wrote of a stage; ``since`` is 0 where none has begun it."""
    nothing = {"stage": name, "seconds": 0.0, "finished": False, "running": "", "since": 0.0, "records": []}
    path = stage_file(out, name)
    return {**nothing, **json.loads(path.read_text())} if path.exists() else nothing


def _blame(out: Path, stage: dict[str, Any], reason: str) -> None:
    """Record that what was running ended the worker."""
    record = {"stage": stage["stage"], "name": stage["running"] or "start", "status": ERROR, "seconds": 0.0}
    records = [*stage["records"], {**record, "message": reason, "findings": [], "data": {}}]
    write_json(stage_file(out, stage["stage"]), {**stage, "records": records, "running": ""})


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and what it started; one that the driver holds on to is left behind."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        worker.wait(timeout=5)


def failed(document: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a check failed, something raised, or a stage of ``names`` is missing or was cut off."""
    whole = {stage["stage"] for stage in document["stages"] if stage["finished"]}
    return not whole.issuperset(names) or any(r["status"] in BAD for r in document["records"])

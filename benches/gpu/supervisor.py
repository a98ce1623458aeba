"""Keeps the time and outlives the worker: an item that crashes or loses the device costs itself, not the rest.

The worker runs the stages one after the other and writes each one's records after every item. When it dies, what it had
written stands and a new worker goes on with the next item; when it stays in a stage beyond its time, it is ended and a
new one goes on with the next stage.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benches.gpu import report
from benches.gpu.records import BAD, ERROR, PREPARING, write_json
from benches.gpu.stages import STAGES, ends
from benches.gpu.worker import stage_file
from patchsae import atomic

CRASHES = 8
"""Workers that a stage may cost before it is given up."""
GRACE = 12.0
"""Seconds that an item may run on after its stage is over, before the worker is ended."""
ROOT = Path(__file__).parents[2]
Start = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


def run(out: Path, size: str, device: str) -> int:
    """Run everything; prints the table and returns the exit status: 1 when a check failed or a stage did not finish."""
    started = time.time()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the worker is ended as well
    out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        stage_file(out, stage.name).unlink(missing_ok=True)

    def start(names: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benches.gpu.worker", "--out", str(out.resolve()), "--size", size]
        command += ["--device", device, "--started", repr(started), "--stages", *names]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    supervise(out, start, started, ends(started), size)
    document = collect(out, size, started)
    text = report.table(document)
    atomic.write_text(out / "table.txt", text)
    print(text)
    return 1 if failed(document) else 0


def supervise(out: Path, start: Start, started: float, ends: dict[str, float], size: str) -> None:
    """Start workers until every stage has been run or given up; the document is written after every stage."""
    remaining = [stage.name for stage in STAGES]
    crashes: Counter[str] = Counter()
    while remaining:
        worker = start(remaining)
        try:
            remaining = _follow(out, worker, remaining, ends, crashes)
        finally:
            _end(worker)
            collect(out, size, started)


def _follow(
    out: Path, worker: subprocess.Popen[bytes], names: list[str], ends: dict[str, float], crashes: Counter[str]
) -> list[str]:
    """Watch one worker until it has run all stages or left one; returns what is left for the next one."""
    first = names[0]
    while names:
        name = names[0]
        stage = _read(out, name)
        if stage["finished"]:
            names = names[1:]
        elif time.time() > ends[name] + GRACE:
            _blame(out, stage, "still running after its time")
            return names[1:]
        elif worker.poll() is not None and not _read(out, name)["finished"]:
            return _crashed(out, names, first, worker.returncode, crashes)
        else:
            time.sleep(0.2)
    return names


def _crashed(out: Path, names: list[str], first: str, status: int, crashes: Counter[str]) -> list[str]:
    """The stages for the next worker, after one died: the same ones, unless it could not even begin the first."""
    name = names[0]
    stage = _read(out, name)
    begun = stage_file(out, name).exists()
    if not begun and name != first:
        return names  # it left between two stages
    crashes[name] += 1
    if stage["running"] or not begun:  # else it has recorded what ended it
        _blame(out, stage, f"the worker ended with status {status}")
    hopeless = not begun or stage["running"] == PREPARING or crashes[name] == CRASHES
    return names[1:] if hopeless else names


def _read(out: Path, name: str) -> dict[str, Any]:
    path = stage_file(out, name)
    if not path.exists():
        return {"stage": name, "seconds": 0.0, "finished": False, "running": "", "records": []}
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _blame(out: Path, stage: dict[str, Any], reason: str) -> None:
    """Record that what was running ended the worker."""
    record = {"stage": stage["stage"], "name": stage["running"] or "start", "status": ERROR, "seconds": 0.0}
    records = [*stage["records"], {**record, "message": reason, "findings": [], "data": {}}]
    write_json(stage_file(out, stage["stage"]), {**stage, "records": records, "running": ""})


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End the worker, if it still runs, and what it started: it leads a process group of its own."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def collect(out: Path, size: str, started: float) -> dict[str, Any]:
    """Join the stages that have a file into one document, and write it."""
    found = [json.loads(stage_file(out, s.name).read_text()) for s in STAGES if stage_file(out, s.name).exists()]
    document = {
        "size": size,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "stages": [{key: stage[key] for key in ("stage", "seconds", "finished")} for stage in found],
        "records": [record for stage in found for record in stage["records"]],
    }
    write_json(out / "results.json", document)
    return document


def failed(document: dict[str, Any]) -> bool:
    """Whether a check failed, something raised, or a stage is missing or was cut off."""
    whole = {stage["stage"] for stage in document["stages"] if stage["finished"]}
    return whole != {stage.name for stage in STAGES} or any(r["status"] in BAD for r in document["records"])

"""Keeps the time and outlives the worker: a stage that hangs or loses the device costs itself, not the rest.

The worker runs the stages one after the other and writes each one's records after every item. When it dies or stays in
a stage beyond its time, it is ended, what it had written stands, and a new worker goes on with the next stage.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benches.gpu import report
from benches.gpu.records import BAD, ERROR, write_json
from benches.gpu.stages import STAGES, ends
from benches.gpu.worker import stage_file
from patchsae import atomic

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
    while remaining:
        worker = start(remaining)
        try:
            remaining = _follow(out, worker, remaining, ends, lambda: collect(out, size, started))
        finally:
            _end(worker)


def _follow(
    out: Path, worker: subprocess.Popen[bytes], names: list[str], ends: dict[str, float], save: Callable[[], object]
) -> list[str]:
    """Watch one worker; returns the stages that are left for the next one."""
    names = list(names)
    while names:
        alive = worker.poll() is None
        if _finished(out, names[0]):
            names.pop(0)
            save()
        elif not alive or time.time() > ends[names[0]] + GRACE:
            reason = "still running after its time" if alive else f"the worker ended with status {worker.returncode}"
            _give_up(out, names.pop(0), reason)
            save()
            return names
        else:
            time.sleep(0.2)
    return names


def _finished(out: Path, name: str) -> bool:
    path = stage_file(out, name)
    return path.exists() and json.loads(path.read_text())["finished"]


def _give_up(out: Path, name: str, reason: str) -> None:
    """Keep what the stage had recorded, and record what stopped it."""
    path = stage_file(out, name)
    stage: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"stage": name, "seconds": 0.0, "records": []}
    )
    record = {"stage": name, "name": stage.get("running") or "start", "status": ERROR, "seconds": 0.0}
    stage["records"].append({**record, "message": reason, "findings": [], "data": {}})
    write_json(path, {**stage, "finished": False, "running": ""})


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

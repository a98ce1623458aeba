"""Runs stages in one process: ``python -m benches.gpu.worker --out DIR --size paper --device cuda --stages table``.

The supervisor starts it; by hand it repeats single stages, without a table at the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from benches.gpu import sources, stages
from benches.gpu.bench import Bench, multiply_in_float32
from benches.gpu.records import ERROR, PREPARING, SKIPPED, Item, Record, Result, StageFile, done, stage_file
from benches.gpu.sizes import SIZES
from patchsae_kernels.parts import interpreted
from tests.triton import language

LOST = 3
"""Exit status: the device answers nothing any more; a new process may have it again."""


class DeviceLost(Exception):
    """A kernel left the device context unusable."""


def run(bench: Bench, ends: Mapping[str, float], started: float) -> None:
    """Run the stages of ``ends`` in order, each until its end. DeviceLost ends the process, not the run."""
    multiply_in_float32()
    watch = sources.Watch()
    for stage in stages.chosen(tuple(ends)):
        bench.end = ends[stage.name]
        run_stage(stage, bench, started, watch)


def run_stage(stage: stages.Stage, bench: Bench, started: float, watch: sources.Watch) -> None:
    """Run the items of one stage that have no record yet; what one of them raises is its record."""
    file = StageFile(stage_file(bench.out, stage.name), stage.name)
    print(f"[{time.time() - started:6.1f} s] {stage.name}", flush=True)
    file.write(running=PREPARING)
    there, names = {record.name for record in file.records}, []
    for item in _items(stage, bench):
        names.append(item.name)
        if item.name in there:
            continue
        file.write(running=item.name)
        record = _left_out(stage, item) if bench.left <= 0 else _watched(stage, item, watch)
        file.add(record)
        print(f"[{time.time() - started:6.1f} s]   {record.status:8} {item.name} {record.message}", flush=True)
        if record.status == ERROR and not _answers(bench):
            raise DeviceLost(item.name)
        file.write(running=PREPARING)
    bench.release()
    file.sort(names)
    file.write(running="", finished=True)


def _items(stage: stages.Stage, bench: Bench) -> Iterator[Item]:
    """The stage's items; where it cannot even list them, one that says why."""
    try:
        yield from stage.items(bench)
    except Exception as error:  # whatever it is, it belongs in the record, and the next stage is worth running
        reason = error

        def fail() -> Result:
            raise reason

        yield Item(PREPARING, fail)


def _watched(stage: stages.Stage, item: Item, watch: sources.Watch) -> Record:
    """The record, with what it was measured with."""
    watch.clear()
    record = _run(stage, item)
    return replace(record, sources=tuple(sorted(watch.modules)), digest=sources.digest(stage.name, watch.modules))


def _run(stage: stages.Stage, item: Item) -> Record:
    start = time.monotonic()
    try:
        result = item.run()
    except Exception as error:  # whatever it is, it belongs in the record, and the next item is worth running
        message = f"{type(error).__name__}: {error}"
        data = {"traceback": traceback.format_exc()[-6000:]}
        return Record(stage.name, item.name, ERROR, round(time.monotonic() - start, 3), message[:500], (), data)
    return done(stage.name, item.name, time.monotonic() - start, result)


def _left_out(stage: stages.Stage, item: Item) -> Record:
    return Record(stage.name, item.name, SKIPPED, 0.0, "out of time")


def _answers(bench: Bench) -> bool:
    """Whether the device still works after an error."""
    if not bench.on_gpu:
        return True
    try:
        torch.cuda.synchronize(bench.device)
        return bool(torch.ones(1, device=bench.device).item() == 1)
    except RuntimeError:
        return False


def _follow(parent: int) -> None:
    """End this process and what it started once its parent is gone, even while it waits for the device."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stages", nargs="+", choices=stages.NAMES, required=True)
    parser.add_argument("--started", type=float, default=None, help="when the run began, as time.time() said")
    parser.add_argument("--ends", nargs="+", type=float, help="when each of the stages must be over, likewise")
    parser.add_argument("--parent", type=int, help="process whose end ends this one")
    arguments = parser.parse_args()
    if arguments.parent:
        threading.Thread(target=_follow, args=(arguments.parent,), daemon=True).start()
    started = arguments.started or time.time()
    names = [stage.name for stage in stages.chosen(arguments.stages)]
    ends = dict(zip(names, arguments.ends, strict=True)) if arguments.ends else dict.fromkeys(names, float("inf"))
    bench = Bench(SIZES[arguments.size], torch.device(arguments.device), arguments.out)
    if interpreted:
        language.replace()
    try:
        run(bench, ends, started)
    except DeviceLost:
        return LOST
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Runs stages in one process: ``python -m benches.gpu.worker --out DIR --size paper --device cuda --stages table``.

The supervisor starts it; by hand it repeats single stages, without a table at the end.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benches.gpu import stages
from benches.gpu.bench import Bench
from benches.gpu.records import ERROR, PREPARING, SKIPPED, Item, Record, Result, StageFile, done
from benches.gpu.sizes import SIZES

LOST = 3
"""Exit status: the device answers nothing any more; a new process may have it again."""


class DeviceLost(Exception):
    """A kernel left the device context unusable."""


def run(bench: Bench, names: Sequence[str], started: float) -> None:
    """Run stages in order, each until its scheduled end. DeviceLost ends the process, not the run."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    ends = stages.ends(started)
    for stage in stages.STAGES:
        if stage.name in names:
            bench.end = ends[stage.name]
            run_stage(stage, bench, started)


def run_stage(stage: stages.Stage, bench: Bench, started: float) -> None:
    """Run the items of one stage that no earlier worker has run; what one of them raises is its record."""
    file = StageFile(stage_file(bench.out, stage.name), stage.name)
    print(f"[{time.time() - started:6.1f} s] {stage.name}", flush=True)
    file.write(running=PREPARING)
    there = {record.name for record in file.records}
    for item in _items(stage, bench):
        if item.name in there:
            continue
        file.write(running=item.name)
        record = _left_out(stage, item) if bench.left <= 0 else _run(stage, item)
        file.add(record)
        print(f"[{time.time() - started:6.1f} s]   {record.status:8} {item.name} {record.message}", flush=True)
        if record.status == ERROR and not _answers(bench):
            raise DeviceLost(item.name)
        file.write(running=PREPARING)
    bench.release()
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


def stage_file(out: Path, stage: str) -> Path:
    return out / "stages" / f"{stage}.json"


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stages", nargs="+", choices=[s.name for s in stages.STAGES], required=True)
    parser.add_argument("--started", type=float, default=None, help="when the run began, as time.time() said")
    arguments = parser.parse_args()
    bench = Bench(SIZES[arguments.size], torch.device(arguments.device), arguments.out)
    try:
        run(bench, arguments.stages, arguments.started or time.time())
    except DeviceLost:
        return LOST
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

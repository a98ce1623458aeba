"""Every kernel of the compile gate's list compiled into Triton's cache, so that no later stage waits for a compiler."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benches.gpu import warming
from benches.gpu.bench import Bench
from benches.gpu.records import Item, Result
from benches.gpu.sources import ROOT

GRACE = 10.0
"""Seconds beyond the stage's end after which the process that compiles kernels counts as hung."""


def items(bench: Bench) -> Iterator[Item]:
    """The kernels that do not compile are items of their own, known once the first one is done."""
    failed: list[dict[str, Any]] = []
    yield Item("kernels compiled ahead", functools.partial(_compile_all, bench, failed))
    for outcome in failed:
        yield Item(f"{outcome['kernel']}, {outcome['configuration']}", functools.partial(_refuse, outcome["message"]))


def _compile_all(bench: Bench, failed: list[dict[str, Any]]) -> Result:
    if not bench.on_gpu:
        return Result(skipped="kernels are compiled ahead on a GPU only")
    from triton.runtime import driver

    target = driver.active.get_current_target()
    part = next((part.name for part in warming.parts() if part.target == target), None)
    if part is None:
        return Result(skipped=f"the compile gate has no part for {target}")
    started = time.monotonic()
    with _opponent(bench) as opponent:
        data = compile_in_processes(bench, part)
        failed += data.pop("failed")
        status = _status_of(opponent, bench.left)
    return Result(data={**data, "status of the opponent's compiler": status, "waited": time.monotonic() - started})


def compile_in_processes(bench: Bench, part: str) -> dict[str, Any]:
    """`benches.gpu.warming.compiled` in a process that has never touched the device, so that it can fork."""
    cores = len(os.sched_getaffinity(0))
    path = bench.out / "warming.json"
    command = [sys.executable, "-m", "benches.gpu.warming", "--part", part, "--cores", str(cores)]
    command += ["--until", repr(bench.end), "--out", str(path.resolve())]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=bench.left + GRACE)
    found: dict[str, Any] = json.loads(path.read_text())
    return {"processes": cores, **found}


@contextmanager
def _opponent(bench: Bench) -> Iterator[subprocess.Popen[bytes]]:
    """`benches.gpu.compiled_ahead`, ended with the block."""
    command = [sys.executable, "-m", "benches.gpu.compiled_ahead", *map(str, bench.size.shape), str(bench.device)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _status_of(process: subprocess.Popen[bytes], seconds: float) -> float:
    """Its exit status, NaN where it still runs after ``seconds``: the table then compiles what it needs."""
    try:
        return float(process.wait(max(0.0, seconds)))
    except subprocess.TimeoutExpired:
        return float("nan")


def _refuse(message: str) -> Result:
    raise RuntimeError(message)

"""Every kernel on small shapes under the vendor's memory and race checkers, where they are installed."""

from __future__ import annotations

import functools
import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benches.gpu.bench import Bench
from benches.gpu.records import Item, Result
from patchsae.bench.findings import Finding

PROGRAM = "compute-sanitizer"
PLACES = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/cuda*/bin", "/opt/nvidia/*/bin")
ROOT = Path(__file__).parents[3]
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def items(bench: Bench) -> Iterator[Item]:
    yield Item("small shapes, plain", functools.partial(_run, bench, [], 0.4))
    for tool, share in (("memcheck", 0.75), ("racecheck", 0.95)):
        yield Item(tool, functools.partial(_checked, bench, tool, share))


def _checked(bench: Bench, tool: str, share: float) -> Result:
    if not bench.on_gpu:
        return Result(skipped="no GPU")
    program = find()
    if program is None:
        return Result(skipped=f"{PROGRAM} is not installed")
    return _run(bench, [program, "--tool", tool, "--print-limit", "20"], share)


def find() -> str | None:
    """The program on the path or where it is usually installed."""
    places = [path for pattern in PLACES for path in sorted(glob.glob(pattern), reverse=True)]
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path=os.pathsep.join(places))


def _run(bench: Bench, prefix: list[str], share: float) -> Result:
    """Run the small shapes, within a share of what is left of the stage's time.

    Without the caching allocator every tensor is an allocation of its own, so that a read past its end is seen.
    """
    command = [*prefix, sys.executable, "-m", "benches.gpu.small", str(bench.device)]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seconds = min(120.0, max(5.0, share * bench.left))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Result(skipped=f"not finished after {seconds:.0f} s")
    text = done.stdout + done.stderr
    summaries = [int(number) for number in SUMMARY.findall(text)]
    findings = [Finding("exit status", float(abs(done.returncode)), 0)]
    if prefix:
        findings.append(Finding("errors", float(sum(summaries)) if summaries else float("nan"), 0))
    return Result(tuple(findings), {"output": text[-4000:]} if not all(f.ok for f in findings) else {})

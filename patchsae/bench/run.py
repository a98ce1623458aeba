"""`patchsae bench`: measure the cases and print one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import patchsae_kernels as pk
from patchsae import atomic, environment
from patchsae.bench import cases, measure


def bench(
    ops: Sequence[str] = (), size: str = "small", device: str = "cpu", rounds: int = 5, json_file: Path | None = None
) -> list[measure.Record]:
    """Time ops against plain PyTorch after checking their answers; prints a table, and writes JSON if asked.

    Args:
        ops: names from `cases.all_cases`; none means all.
        size: a key of `cases.SIZES`. On a GPU "paper" is a whole batch of 128 images.
        json_file: records with the machine's description and the commit, written atomically.

    Raises:
        ValueError: unknown op or size.
        AssertionError: an op disagrees with plain PyTorch; nothing is timed then.
    """
    if size not in cases.SIZES:
        raise ValueError(f"size is {size!r}; expected one of {', '.join(cases.SIZES)}")
    chosen, wanted = cases.named(ops), cases.SIZES[size]
    if size == "paper" and device != "cpu":
        wanted = wanted._replace(images=cases.PAPER_BATCH_ON_GPU)
    inputs = cases.make_inputs(wanted, device)
    console = Console()
    records = []
    for case in chosen:
        with console.status(f"{case.name} ({size})"):
            records.append(measure.measure(case, inputs, size, rounds))
    console.print(table(records, f"N = {len(inputs.x)}, D = {wanted.d_in}, S = {wanted.d_sae}, L0 = {inputs.z.l0:.0f}"))
    if json_file is not None:
        atomic.write_text(json_file, json.dumps(document(records, wanted, inputs.z.l0), indent=1) + "\n")
    return records


def table(records: Sequence[measure.Record], title: str) -> Table:
    """One row an op: time, ratio to plain PyTorch, share of the limit, peak memory; below, what the limits are."""
    drawn = Table(title=title)
    for name in ("op", "ms", "PyTorch ms", "ratio", "of limit", "peak MB"):
        drawn.add_column(name, justify="left" if name == "op" else "right", no_wrap=True)
    for r in records:
        drawn.add_row(
            r.op,
            f"{r.milliseconds:.2f}",
            f"{r.baseline_milliseconds:.2f}",
            f"{r.ratio:.2f}x",
            f"{r.share_of_limit:.1%}",
            f"{r.peak_mb:.0f}",
        )
    drawn.caption = "limits: " + "; ".join(f"{r.op}: {r.floor}" for r in records)
    return drawn


def document(records: Sequence[measure.Record], size: cases.Size, l0: float) -> dict[str, Any]:
    """What the JSON file holds: the machine, the commit, the inputs, the records."""
    return {
        "machine": pk.describe() | {"cpu_model": _cpu_model(), "torch_threads": torch.get_num_threads()},
        "commit": environment.git_commit(),
        "inputs": size._asdict() | {"measured_l0": l0},
        "records": [record.as_dict() for record in records],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"

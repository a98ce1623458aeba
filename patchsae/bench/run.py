"""`patchsae bench`: measure the cases and print one table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import patchsae_kernels as pk
from patchsae.bench import cases, measure
from patchsae.bench.inputs import PAPER_BATCH_ON_GPU, SIZES, make_inputs
from patchsae.disk import atomic, environment


def bench(
    ops: Sequence[str] = (), size: str = "small", device: str = "cpu", rounds: int = 5, json_file: Path | None = None
) -> list[measure.Record]:
    """Time ops against plain PyTorch after checking their answers; prints a table, and writes JSON if asked.

    Args:
        ops: names from `cases.all_cases`; none means all.
        size: a key of `inputs.SIZES`. On a GPU "paper" is a whole batch of 128 images.
        json_file: records with the machine's description and the commit, written atomically.

    Raises:
        ValueError: unknown op or size.
        AssertionError: an op disagrees with plain PyTorch; nothing is timed then.
    """
    console = Console()
    with console.status(f"{size} inputs") as status:
        records = []
        for record in measured(ops, size, device, rounds):
            records.append(record)
            status.update(f"{record.op}: {record.ratio:.1f}x")
    console.print(table(records))
    if json_file is not None:
        save(records, json_file)
    return records


def measured(ops: Sequence[str], size: str, device: str, rounds: int) -> Iterator[measure.Record]:
    """The records of some ops (none: all) at one size, as they come. Raises as `bench`."""
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    chosen, wanted = cases.named(ops), SIZES[size]
    if size == "paper" and device != "cpu":
        wanted = wanted._replace(images=PAPER_BATCH_ON_GPU)
    inputs = make_inputs(wanted, device)
    for case in chosen:
        # A copy has none of what is made on demand: dense tensors are freed and training starts from the same weights.
        yield measure.measure(case, replace(inputs), size, rounds)


def table(records: Sequence[measure.Record]) -> Table:
    """One row an op: time, ratio to plain PyTorch, share of the limit, peak memory; below, what the limits are."""
    sizes = {r.size: r.inputs for r in records}
    drawn = Table(title="; ".join(f"{size}: {inputs}" for size, inputs in sizes.items()))
    for name in ("op", "size", "ms", "PyTorch ms", "ratio", "of limit", "peak MB"):
        drawn.add_column(name, justify="left" if name in ("op", "size") else "right", no_wrap=True)
    for r in records:
        drawn.add_row(
            r.op,
            r.size,
            f"{r.milliseconds:.2f}",
            f"{r.baseline_milliseconds:.2f}",
            f"{r.ratio:.2f}x",
            f"{r.share_of_limit:.1%}",
            f"{r.peak_mb:.0f}",
        )
    floors = {r.op: r.floor for r in records}
    drawn.caption = "limits: " + "; ".join(f"{op}: {floor}" for op, floor in floors.items())
    return drawn


def save(records: Sequence[measure.Record], json_file: Path) -> None:
    """Write the machine, the commit and the records, atomically."""
    document = {
        "machine": pk.describe() | {"cpu_model": _cpu_model(), "torch_threads": torch.get_num_threads()},
        "commit": environment.git_commit(),
        "records": [record.as_dict() for record in records],
    }
    atomic.write_text(json_file, json.dumps(document, indent=1) + "\n")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"

"""`patchsae bench`: measure the cases and print one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from patchsae.bench import cases
from patchsae.bench.inputs import make_problem
from patchsae.bench.records import Record, record, save
from patchsae.bench.sizes import PAPER_BATCH_ON_GPU, SIZES
from patchsae.bench.tables import table


def bench(
    ops: Sequence[str] = (), size: str = "small", device: str = "cpu", rounds: int = 5, json_file: Path | None = None
) -> list[Record]:
    """Time ops against plain PyTorch after checking their answers; prints a table, and writes JSON if asked.

    Args:
        ops: names from `cases.all_cases`; none means all.
        size: a key of `sizes.SIZES`. On a GPU "paper" is a whole batch of 128 images.
        json_file: records with the machine's description and the commit, written atomically.

    Raises:
        ValueError: unknown op or size.
        AssertionError: an op disagrees with plain PyTorch or with float64; it is not timed then.
    """
    console = Console()
    with console.status(f"{size} inputs") as status:
        records = []
        for found in measured(ops, size, device, rounds):
            records.append(found)
            status.update(f"{found.op}: {found.ratio:.1f}x")
    console.print(table(records))
    if json_file is not None:
        save(records, json_file)
    return records


def measured(ops: Sequence[str], size: str, device: str, rounds: int) -> Iterator[Record]:
    """The records of some ops (none: all) at one size, as they come. Raises as `bench`."""
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    chosen, wanted = cases.named(ops), SIZES[size]
    if size == "paper" and device != "cpu":
        wanted = replace(wanted, images=PAPER_BATCH_ON_GPU)
    problem = make_problem(wanted, device)
    for case in chosen:
        yield record(case, problem, size, rounds)
        problem.release()

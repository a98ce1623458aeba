"""Records as tables: ops beside their limits, and trainings by images a second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from patchsae.bench.records import Record
from patchsae.bench.sizes import SIZES


def table(records: Sequence[Record]) -> Table:
    """One row an op: time, ratio to plain PyTorch, share of the limit, peak memory; below, what the limits are."""
    sizes = {r.size: r.inputs for r in records}
    rows = (
        (
            f"{r.milliseconds:.2f}",
            f"{r.baseline_milliseconds:.2f}",
            f"{r.ratio:.2f}x",
            f"{r.share_of_limit:.1%}",
            f"{r.peak_mb:.0f}",
        )
        for r in records
    )
    title = "; ".join(f"{size}: {inputs}" for size, inputs in sizes.items())
    drawn = _drawn(title, ("op", "ms", "PyTorch ms", "ratio", "of limit", "peak MB"), records, rows)
    floors = {r.op: r.floor for r in records}
    drawn.caption = "limits: " + "; ".join(f"{op}: {floor}" for op, floor in floors.items())
    return drawn


def training_table(records: Sequence[Record]) -> Table:
    """Images a second and peak memory, ours and the dense one."""
    title = "training: images a second; MB beside parameters and moments, the most at any time"
    names = ("case", "images/s", "PyTorch images/s", "ratio", "peak MB", "PyTorch peak MB")
    return _drawn(title, names, records, map(_rates, records))


def _rates(r: Record) -> tuple[str, ...]:
    images = 1e3 * SIZES[r.size].images
    rates = images / r.milliseconds, images / r.baseline_milliseconds
    return (*(f"{rate:.3g}" for rate in rates), f"{r.ratio:.2f}x", f"{r.peak_mb:,.0f}", f"{r.baseline_peak_mb:,.0f}")


def _drawn(title: str, names: Sequence[str], records: Sequence[Record], rows: Iterable[Sequence[str]]) -> Table:
    """Each row begins with the op and the size of its record."""
    drawn = Table(title=title)
    for name in (names[0], "size", *names[1:]):
        drawn.add_column(name, justify="left" if name in (names[0], "size") else "right", no_wrap=True)
    for record, row in zip(records, rows, strict=True):
        drawn.add_row(record.op, record.size, *row)
    return drawn

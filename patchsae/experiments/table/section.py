"""The report's section on a table: its rows as the paper prints them, and the latents that change, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

from patchsae import words
from patchsae.disk.runs import Run
from patchsae.experiments.compare.transitions import NORMALISATIONS, TRANSITIONS
from patchsae.experiments.table.result import TableRow, caption, markdown_columns
from patchsae.report import Section, plots


def section(rows: Sequence[TableRow], share: str, cells_run: Run) -> Section:
    """The table and its plot. share: what the shares divide by. cells_run: the run of the cells."""
    lead = (
        f"What adaptation changes in {words.counted(len(rows), 'pair')} of a dataset and an adapter. The comparison of "
        f"each pair, with its latents, is in {cells_run.root.name}/report.html."
    )
    part = Section("Adaptation over datasets", lead)
    part.table(markdown_columns(rows, share), caption(rows, share))
    names = [f"{row.dataset}, {row.adapter}" for row in rows]
    first = next(iter(rows[0].accuracies))
    series = {
        kind: [100 * row.means[first].shares[share][position] if first in row.means else 0.0 for row in rows]
        for position, kind in enumerate(TRANSITIONS)
    }
    figure = plots.class_dots(names, series, f"% of {NORMALISATIONS[share]}", percent=False)
    part.figure(figure, f"Latents that stay high, turn low and turn high; mean over {first} classes.")
    return part

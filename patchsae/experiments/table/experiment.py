"""One table over datasets and adapters, as table 1 of Lim et al. (arXiv 2412.05276): a comparison per cell.

Every cell has its own stages, so a stopped table goes on where it was, and a longer list only adds its new cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from patchsae import words
from patchsae.data import ImageDataset
from patchsae.experiments.compare import crossed
from patchsae.experiments.compare import experiment as adaptation
from patchsae.experiments.compare.experiment import Side
from patchsae.experiments.compare.transitions import KINDS, NORMALISATIONS
from patchsae.experiments.options import CompareOptions, CrossOptions
from patchsae.experiments.provenance import stage_config
from patchsae.experiments.table.cells import Cell
from patchsae.experiments.table.result import TableRow, caption, markdown, markdown_columns, table_columns, table_row
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, build, plots

if TYPE_CHECKING:
    from patchsae.disk.runs import Run, Stage


@dataclass(frozen=True, eq=False)
class OpenCell:
    """A cell with everything it names."""

    first: Side
    """The CLIP, and the images to rank."""
    second: Side
    """The adapted CLIP, and the same images."""
    test: ImageDataset
    """The images to classify."""
    settings: Mapping[str, Any]
    """What to record of how these were opened."""


def run(
    cells: Sequence[Cell],
    open_cell: Callable[[Cell], OpenCell],
    sae: SparseAutoencoder,
    cells_run: Run,
    stage: Stage,
    compare: CompareOptions,
    cross: CrossOptions,
    *,
    share: str = "high_either",
    overwrite: bool = False,
) -> list[TableRow]:
    """Run the cells that are not finished yet, then write the table of all anew.

    Args:
        cells: at least one.
        open_cell: opens what a cell names. All are opened before the first runs, so that a wrong path is no surprise
            hours later.
        sae: the autoencoder that reads all models.
        cells_run: where the cells are kept: the stages CELL (:func:`adaptation.run`) and CELL-test
            (:func:`crossed.run`), and a report of its own.
        stage: folder of the table: ``table.csv`` (a row per cell and group of classes, every normalisation),
            ``table.md`` (as the paper prints it) and the report's section.
        compare, cross: settings of all cells; a cell's templates take the place of theirs.
        share: normalisation of ``table.md``, one of ``NORMALISATIONS``.
        overwrite: run finished cells again too.

    Raises:
        ValueError: no cells, an unknown share, images without labels, or what the experiments of a cell raise.
    """
    require_share(share)
    if not cells:
        raise ValueError("cells is empty; expected at least one")
    opened = [(cell, _labelled(cell, open_cell(cell))) for cell in cells]
    rows = []
    for number, (cell, found) in enumerate(opened, start=1):
        print(f"{stage.name}: cell {cell.name} ({number} of {len(cells)})")
        rows.append(_row(cell, found, sae, cells_run, compare, cross, overwrite))
        build(cells_run)
    with stage:
        made_from = {"cells": {cell.name: asdict(cell) for cell in cells}}
        stage.begin(stage_config(None, {"share": share}, **made_from), overwrite=True)
        _write(rows, share, stage, cells_run)
        stage.finish()
    return rows


def _labelled(cell: Cell, found: OpenCell) -> OpenCell:
    for dataset in (found.first.dataset, found.test):
        if not dataset.classnames:
            raise ValueError(f"cell {cell.name}: dataset {dataset.name!r} has no labels; a table is about classes")
    return found


def _row(
    cell: Cell,
    found: OpenCell,
    sae: SparseAutoencoder,
    cells_run: Run,
    compare: CompareOptions,
    cross: CrossOptions,
    overwrite: bool,
) -> TableRow:
    """Run a cell, as far as it is not finished."""
    templates = cell.templates or compare.templates
    compared, tested = (cells_run.stage(name, "table") for name in cell.stages)
    comparison = adaptation.run(
        found.first,
        found.second,
        sae,
        compared,
        replace(compare, templates=templates),
        settings=found.settings,
        overwrite=overwrite,
    )
    classified = crossed.run(
        found.first,
        found.second,
        sae,
        comparison,
        found.test,
        tested,
        replace(cross, templates=templates),
        settings=found.settings,
        overwrite=overwrite,
    )
    return table_row(cell.name, cell.dataset or cell.name, comparison, classified)


def require_share(share: str) -> None:
    """ValueError for a normalisation that is none."""
    if share not in NORMALISATIONS:
        raise ValueError(f"share is {share!r}; expected one of {', '.join(NORMALISATIONS)}")


def _write(rows: Sequence[TableRow], share: str, stage: Stage, cells_run: Run) -> None:
    columns, below = markdown_columns(rows, share), caption(rows, share)
    stage.write_table("table.csv", table_columns(rows))
    stage.write_bytes("table.md", markdown(columns, below).encode())
    lead = (
        f"What adaptation changes in {words.counted(len(rows), 'pair')} of a dataset and an adapter. The comparison of "
        f"each pair, with its latents, is in {cells_run.root.name}/report.html."
    )
    section = Section("Adaptation over datasets", lead)
    section.table(columns, below)
    names = [f"{row.dataset}, {row.adapter}" for row in rows]
    first = next(iter(rows[0].accuracies))
    series = {
        kind: [100 * row.means[first].shares[share][position] if first in row.means else 0.0 for row in rows]
        for position, kind in enumerate(KINDS)
    }
    figure = plots.class_dots(names, series, f"% of {NORMALISATIONS[share]}", percent=False)
    section.figure(figure, f"Latents that stay high, turn low and turn high; mean over {first} classes.")
    section.write(stage)

"""One table over datasets and adapters, as table 1 of Lim et al. (arXiv 2412.05276): a comparison per cell.

Every cell has its own stages, so a stopped table goes on where it was, and a longer list only adds its new cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from patchsae.data import ImageDataset
from patchsae.disk.runs import Run, Stage
from patchsae.experiments import compare
from patchsae.experiments.compare import Side, crossed
from patchsae.experiments.compare.options import cross_options
from patchsae.experiments.compare.transitions import NORMALISATIONS
from patchsae.experiments.stream.job import Job
from patchsae.experiments.table.cells import Cell
from patchsae.experiments.table.options import TableOptions
from patchsae.experiments.table.result import TableRow, caption, markdown, markdown_columns, table_columns, table_row
from patchsae.experiments.table.section import section
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, build


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
    job: Job | Stage,
    options: TableOptions | None = None,
) -> list[TableRow]:
    """Run the cells that are not finished yet, then write the table of all anew.

    Args:
        cells: at least one.
        open_cell: opens what a cell names. All are opened before the first runs, so that a wrong path is no surprise
            hours later.
        sae: the autoencoder that reads all models.
        job: its stage receives ``table.csv`` (a row per cell and group of classes, every normalisation), ``table.md``
            (as the paper prints it) and the report's section. Beside a stage NAME lies the run NAME-cells with the
            stages CELL (:func:`compare.run`) and CELL-test (:func:`crossed.run`), and a report of its own. Overwriting
            runs finished cells again, too.
        options: see :class:`TableOptions`.

    Raises:
        ValueError: no cells, an unknown share, images without labels, or what the experiments of a cell raise.
    """
    job, options = Job.of(job), options or TableOptions()
    require_share(options.share)
    if not cells:
        raise ValueError("cells is empty; expected at least one")
    cells_run = Run(job.stage.path.with_name(f"{job.stage.name}-cells"))
    opened = [(cell, _labelled(cell, open_cell(cell))) for cell in cells]
    rows = []
    for number, (cell, found) in enumerate(opened, start=1):
        print(f"{job.stage.name}: cell {cell.name} ({number} of {len(cells)})")
        rows.append(_row(cell, found, sae, cells_run, options, job.overwrite))
        build(cells_run)
    anew = replace(job, settings={**job.settings, "share": options.share}, overwrite=True)
    config = anew.config(None, cells={cell.name: asdict(cell) for cell in cells})
    anew.make(config, lambda: rows, partial(_write, options.share, cells_run))
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
    options: TableOptions,
    overwrite: bool,
) -> TableRow:
    """Run a cell, as far as it is not finished."""
    compared, tested = (Job(cells_run.stage(name, "table"), found.settings, overwrite) for name in cell.stages)
    chosen = replace(options.cell, templates=cell.templates or options.cell.templates)
    comparison = compare.run(found.first, found.second, sae, compared, chosen)
    masked = cross_options(chosen, options.masks, swept=options.mask)
    classified = crossed.run(found.first, found.second, sae, comparison, found.test, tested, masked)
    return table_row(cell.name, cell.dataset or cell.name, comparison, classified)


def require_share(share: str) -> None:
    """ValueError for a normalisation that is none."""
    if share not in NORMALISATIONS:
        raise ValueError(f"share is {share!r}; expected one of {', '.join(NORMALISATIONS)}")


def _write(share: str, cells_run: Run, stage: Stage, rows: Sequence[TableRow]) -> Section:
    stage.write_table("table.csv", table_columns(rows))
    stage.write_bytes("table.md", markdown(markdown_columns(rows, share), caption(rows, share)).encode())
    return section(rows, share, cells_run)

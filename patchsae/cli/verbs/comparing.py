"""Verbs that put models or datasets side by side: compare, table, correlate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from patchsae.cli.choices import Images, Model, Sides
from patchsae.cli.verbs.shared import PLAIN, renew_report, require_prompts, stage_of, together
from patchsae.experiments.compare.options import CompareOptions, cross_options
from patchsae.experiments.mask.options import TopKOptions
from patchsae.experiments.table.options import CellOptions, TableOptions


@dataclass(frozen=True)
class Comparing:
    """What `patchsae compare` writes, and through which SAE."""

    run: Path
    """directory of the experiment; the results are RUN/NAME and, of the test images, RUN/NAME-test."""
    sae: str | None = None
    """a checkpoint; left out: RUN/train."""
    name: str = "compare"
    """name of the result."""
    overwrite: bool = False
    """start again."""


@dataclass(frozen=True)
class Tabulating:
    """What `patchsae table` writes, of which cells, and through which SAE."""

    run: Path
    """directory of the experiment; the table is RUN/NAME, the cells are the stages of RUN/NAME-cells."""
    cells: Path
    """TOML file with a table [[cells]] for each: name, images, adapter; also rank_split ("train"), test_split
    ("test"), rank_limit, test_limit, test_images, outside, dataset, label, templates. [defaults] holds for all."""
    mask: bool = False
    """also mask the latents of every cell's classes in both models, by the rankings of both."""
    share: str = "high_either"
    """what the shares of table.md divide by: high, high_a, high_b, high_either, active_a, active_b,
    active_either or all (table.csv has them all)."""
    sae: str | None = None
    """a checkpoint; left out: RUN/train."""
    name: str = "table"
    """name of the result."""
    overwrite: bool = False
    """run the cells again."""


def compare(
    how: Annotated[Comparing, PLAIN],
    images: Images,
    model: Model,
    sides: Sides,
    options: CompareOptions,
    sweep: TopKOptions,
) -> None:
    """Two models on the same images, or one model on two datasets, through one SAE: what changes.

    With --test-split (or --test-images) both models also classify those images, with the latents of the classes kept
    and ablated as either model ranks them. Runs under torchrun, as `extract` does.
    """
    from patchsae.cli import opening
    from patchsae.cli.sides import open_sides
    from patchsae.disk.runs import Run
    from patchsae.experiments import Job
    from patchsae.experiments import compare as experiment
    from patchsae.experiments.compare import crossed

    sides.require_two()
    require_prompts(options.templates)
    with together(how.run, model) as (model, parallel):
        reader = opening.autoencoder(Run(how.run), how.sae, opening.device(model))
        found = open_sides(sides, images, model, reader)
        options = opening.as_trained(options, found.settings)
        given = {} if how.sae is None else {"sae": how.sae}
        pair = (found.first, found.second, reader)
        job = Job(stage_of(how.run, how.name, "compare"), found.settings | given, how.overwrite, parallel)
        compared = experiment.run(*pair, job, options)
        if found.tested is not None:
            stage = stage_of(how.run, f"{how.name}-test", "compare")
            job = replace(job, stage=stage, settings=found.test_settings | given)
            crossed.run(*pair, compared, found.tested, job, cross_options(options, sweep))


def table(how: Annotated[Tabulating, PLAIN], model: Model, sweep: TopKOptions, options: CellOptions) -> None:
    """One table of what adaptation changes, over any list of datasets and adapters, as in the paper.

    A table that was stopped goes on with the first cell that is not finished; new cells may be added to the list.
    """
    from patchsae.cli import opening
    from patchsae.cli.sides import open_cell
    from patchsae.disk.runs import Run
    from patchsae.experiments import Job
    from patchsae.experiments import table as experiment
    from patchsae.experiments.table.cells import read_cells
    from patchsae.experiments.table.experiment import require_share

    listed = read_cells(how.cells)
    require_share(how.share)
    for cell in listed:
        require_prompts(cell.templates or options.templates)
        if cell.adapter is not None:
            opening.adapter_folder(cell.adapter)
    autoencoder = opening.autoencoder(Run(how.run), how.sae, opening.device(model))
    clip = opening.clip(model, autoencoder.config.metadata)
    job = Job(stage_of(how.run, how.name, "table"), overwrite=how.overwrite)
    chosen = TableOptions(options, sweep, how.mask, how.share)
    experiment.run(listed, partial(open_cell, clip=clip), autoencoder, job, chosen)
    print((how.run / how.name / "table.md").read_text(), end="")
    renew_report(how.run)


def correlate(run: Path, stages: tuple[str, ...], name: str = "correlate", overwrite: bool = False) -> None:
    """Correlate what datasets, or models, activate: a matrix over finished extractions and comparisons.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        stages: extractions and comparisons, by their names in RUN (a comparison has two entries, a side each).
        name: name of the result.
        overwrite: start again.
    """
    from patchsae.cli import opening
    from patchsae.disk.again import verb_of
    from patchsae.disk.runs import Run
    from patchsae.experiments import Job
    from patchsae.experiments import correlate as experiment

    made_by = {stage: verb_of(Run(run).stage(stage).path) or "extract" for stage in stages}
    finished = [opening.finished_stage(Run(run), stage, made_by[stage], "other --stages") for stage in stages]
    found = [activity for stage in finished for activity in experiment.activities(stage)]
    experiment.run(found, Job(stage_of(run, name, "correlate"), {"stages": list(stages)}, overwrite))
    renew_report(run)

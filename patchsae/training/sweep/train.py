"""Many autoencoders trained on one stream of tokens: an image is decoded and goes through the tower once for all.

Each is a stage of its own, which ends as `patchsae train` would leave it: the same weights, whatever else is trained
beside it. So a sweep that was killed goes on where its autoencoders were, a larger grid adds the new ones to those that
are finished, and how the grid is cut into groups does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from patchsae.disk.runs import Run, Stage
from patchsae.parallel.base import Alone, Parallel
from patchsae.training.learner import Learner
from patchsae.training.loggers import check_names
from patchsae.training.loop import Loop
from patchsae.training.origin import Origin
from patchsae.training.sweep.grid import Cell
from patchsae.training.sweep.groups import announce, fit
from patchsae.training.trainee import Trainee, begin, diverged


@dataclass(frozen=True)
class Member:
    """An autoencoder of a sweep, done with."""

    cell: Cell
    stage: Stage
    """Finished, and `load_sae(stage.path)` opens it; not where it diverged."""
    diverged: str | None
    """What was not finite, and when; None where it was trained to the end."""


def train_grid(
    origin: Origin,
    cells: Sequence[Cell],
    run: Run,
    *,
    memory: int,
    overwrite: bool = False,
    log: Sequence[str] = (),
    parallel: Parallel | None = None,
) -> list[Member]:
    """Train the cells that are not finished yet, as many at a time as fit into `memory`, or go on with them.

    What is needed and how it is cut is announced on standard error before it begins. An autoencoder whose loss is not
    finite is dropped with a warning; the others go on.

    Args:
        cells: of one `Grid`, so that all see the same tokens.
        run: receives a stage per cell, under its name, with what `patchsae.training.trainer.train` leaves; one that was
            dropped keeps its checkpoints, and diverged.json says why.
        memory: bytes of each process; see `groups.group_bytes`.
        origin, overwrite, log, parallel: as for `patchsae.training.trainer.train`; processes share the images alone.

    Raises:
        TooLarge: a cell does not fit alone; nothing was written.
        Interrupted: SIGINT or SIGTERM, after the checkpoints were written.
        ConfigDiffers: a cell was begun with other settings.
        BadImage: an image cannot be decoded and `on_bad_image` is "stop".
    """
    parallel = parallel or Alone(origin.device)
    check_names(log)
    finished = parallel.broadcast([run.stage(cell.name).finished and not overwrite for cell in cells])
    waiting = [cell for cell, done in zip(cells, finished, strict=True) if not done]
    groups = fit(origin, waiting, memory, parallel.data_size)
    if groups and parallel.is_first:
        announce(origin, groups, memory, parallel.data_size)
    sweep = _Sweep(origin, run, overwrite, log, parallel)
    sweep.train([cell for cell in cells if cell not in waiting], run.root.name)  # says so
    for number, group in enumerate(groups, 1):
        sweep.train(group, run.root.name + ("" if len(groups) == 1 else f" ({number} of {len(groups)})"))
    return [Member(cell, run.stage(cell.name), diverged(run.stage(cell.name))) for cell in cells]


@dataclass(frozen=True)
class _Sweep:
    """What the groups of a sweep have in common."""

    origin: Origin
    run: Run
    overwrite: bool
    log: Sequence[str]
    parallel: Parallel

    def train(self, cells: Sequence[Cell], label: str) -> None:
        """A group, in one pass over the images."""
        if not cells:
            return
        origin = self.origin
        # settings that do not fit are refused before any stage has begun
        feed = origin.feed(cells[0].config, sorted({cell.layer for cell in cells}), self.parallel)
        learners = [self._learner(cell) for cell in cells]
        with ExitStack() as stages:
            begun = [self._begun(cell, learner, stages) for cell, learner in zip(cells, learners, strict=True)]
            trainees = [trainee for trainee in begun if trainee is not None]
            if trainees:
                Loop(feed, trainees, label, dropping=True).run(origin.images, self.log)

    def _learner(self, cell: Cell) -> Learner:
        metadata = self.origin.metadata(cell.config, cell.layer)
        return Learner(cell.config, self.origin.width, self.origin.device, self.parallel, metadata)

    def _begun(self, cell: Cell, learner: Learner, stages: ExitStack) -> Trainee | None:
        """None for a cell that is finished, or diverged."""
        stage = stages.enter_context(self.run.stage(cell.name, "sweep"))
        settings = self.origin.settings(cell.config, cell.layer)
        proceed = begin(stage, settings, self.overwrite, self.parallel)
        if not proceed or self.parallel.broadcast(diverged(stage)) is not None:
            return None
        return Trainee(learner, stage, cell.layer)

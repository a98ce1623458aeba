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
from patchsae.training.sweep.grid import Trial
from patchsae.training.sweep.groups import announce, fit
from patchsae.training.trainee import Trainee, begin, diverged


@dataclass(frozen=True)
class Member:
    """An autoencoder of a sweep, done with."""

    trial: Trial
    stage: Stage
    """Finished, and `load_sae(stage.path)` opens it; not where it diverged."""
    diverged: str | None
    """What was not finite, and when; None where it was trained to the end."""


def train_grid(
    origin: Origin,
    trials: Sequence[Trial],
    run: Run,
    *,
    memory: int,
    overwrite: bool = False,
    log: Sequence[str] = (),
    parallel: Parallel | None = None,
) -> list[Member]:
    """Run the trials that are not finished yet, as many at a time as fit into `memory`, or go on with them.

    What is needed and how it is cut is announced on standard error before it begins. An autoencoder whose loss is not
    finite is dropped with a warning; the others go on.

    Args:
        trials: of one `Grid`, so that all see the same tokens.
        run: receives a stage per trial, under its name, with what `patchsae.training.trainer.train` leaves; one that
            was dropped keeps its checkpoints, and diverged.json says why.
        memory: bytes of each process; see `groups.group_bytes`.
        origin, overwrite, log, parallel: as for `patchsae.training.trainer.train`; processes share the images alone.

    Raises:
        TooLarge: a trial does not fit alone; nothing was written.
        Interrupted: SIGINT or SIGTERM, after the checkpoints were written.
        ConfigDiffers: a trial was begun with other settings.
        BadImage: an image cannot be decoded and `on_bad_image` is "stop".
    """
    parallel = parallel or Alone(origin.device)
    check_names(log)
    finished = parallel.broadcast([run.stage(trial.name).finished and not overwrite for trial in trials])
    waiting = [trial for trial, done in zip(trials, finished, strict=True) if not done]
    groups = fit(origin, waiting, memory, parallel.data_size)
    if groups and parallel.is_first:
        announce(origin, groups, memory, parallel.data_size)
    sweep = _Sweep(origin, run, overwrite, log, parallel)
    sweep.train([trial for trial in trials if trial not in waiting], run.root.name)  # says so
    for number, group in enumerate(groups, 1):
        sweep.train(group, run.root.name + ("" if len(groups) == 1 else f" ({number} of {len(groups)})"))
    return [Member(trial, run.stage(trial.name), diverged(run.stage(trial.name))) for trial in trials]


@dataclass(frozen=True)
class _Sweep:
    """What the groups of a sweep have in common."""

    origin: Origin
    run: Run
    overwrite: bool
    log: Sequence[str]
    parallel: Parallel

    def train(self, trials: Sequence[Trial], label: str) -> None:
        """A group, in one pass over the images."""
        if not trials:
            return
        origin = self.origin
        # settings that do not fit are refused before any stage has begun
        feed = origin.feed(trials[0].config, sorted({trial.layer for trial in trials}), self.parallel)
        learners = [self._learner(trial) for trial in trials]
        with ExitStack() as stages:
            begun = [self._begun(trial, learner, stages) for trial, learner in zip(trials, learners, strict=True)]
            trainees = [trainee for trainee in begun if trainee is not None]
            if trainees:
                Loop(feed, trainees, label, dropping=True).run(origin.images, self.log)

    def _learner(self, trial: Trial) -> Learner:
        metadata = self.origin.metadata(trial.config, trial.layer)
        return Learner(trial.config, self.origin.width, self.origin.device, self.parallel, metadata)

    def _begun(self, trial: Trial, learner: Learner, stages: ExitStack) -> Trainee | None:
        """None for a trial that is finished, or diverged."""
        stage = stages.enter_context(self.run.stage(trial.name, "sweep"))
        settings = self.origin.settings(trial.config, trial.layer)
        proceed = begin(stage, settings, self.overwrite, self.parallel)
        if not proceed or self.parallel.broadcast(diverged(stage)) is not None:
            return None
        return Trainee(learner, stage, trial.layer)

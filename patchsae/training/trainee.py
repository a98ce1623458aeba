"""One autoencoder on its way through a training: its learner, its stage on disk, its checkpoints, its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import patchsae_kernels as pk
from patchsae.activations import TokenBatch
from patchsae.data import BadImageRecord
from patchsae.data.left_out import each_once
from patchsae.disk import atomic
from patchsae.disk.runs import Stage
from patchsae.models.checkpoints.formats import ours
from patchsae.parallel.base import Parallel
from patchsae.training import checkpoint
from patchsae.training.clock import Speed
from patchsae.training.config import MAY_DIFFER
from patchsae.training.learner import Learner
from patchsae.training.loggers import Loggers, open_loggers
from patchsae.training.section import training_section

DIVERGED = "diverged"
"""Name (.json) of what is left in the stage of an autoencoder of a sweep whose loss was not finite."""


class Trainee:
    """A learner with the stage that it fills. Every process has it and calls its methods; the first one writes.

    Args:
        stage: begun by `begin`.
        block: whose output it reads.
    """

    def __init__(self, learner: Learner, stage: Stage, block: int) -> None:
        self.learner, self.stage, self.block = learner, stage, block
        self.config, self.parallel = learner.config, learner.parallel
        self.folder = stage.path / checkpoint.FOLDER
        self._saved_step = -1
        self._loggers: Loggers | None = None
        self._speed = Speed(0)

    def resume(self) -> bool:
        """Go to the newest checkpoint. False where there is none, and the learner has to start."""
        if self.parallel.is_first:
            atomic.remove_partial(self.stage.folder(checkpoint.FOLDER))
        if not self.parallel.broadcast(checkpoint.exists(self.folder)):
            return False
        self.learner.blank()
        checkpoint.restore(self.folder, self.learner.state, self.parallel)
        self._saved_step = self.learner.state.step
        return True

    def logging(self, names: Sequence[str], stack: ExitStack) -> None:
        """Log from here on, until the stack is left."""
        state = self.learner.state
        if self.parallel.is_first:
            self.stage.keep_metrics(lambda row: row["step"] <= state.step)
            self._loggers = stack.enter_context(open_loggers(names, self.stage))
        self._speed = Speed(state.images)

    def step(self, batch: TokenBatch, last: bool) -> pk.StepTerms:
        """Learn from a batch, and log what is due. Raises NonFiniteLoss with the state unchanged."""
        state, before = self.learner.state, self.learner.state.step
        terms = self.learner.step(batch)
        if state.step > before and (state.step == 1 or state.step % self.config.log_every == 0 or last):
            row = self.learner.record(batch, terms)
            if self._loggers is not None:
                self._loggers.log({**row, "images_per_s": self._speed.since(state.images)})
        return terms

    def save(self) -> bool:
        """Write a checkpoint. False where the last one is of this step."""
        state = self.learner.state
        if self._saved_step == state.step:
            return False
        self._share_bad()
        checkpoint.save(self.folder, state, self.parallel, self.config.keep_checkpoints)
        self._saved_step = state.step
        return True

    def note_bad(self, found: Sequence[BadImageRecord]) -> None:
        """Images that were left out."""
        self.learner.state.bad = each_once(self.learner.state.bad, found)

    def drop(self, reason: str) -> None:
        """Leave what happened, and the state before it."""
        self.save()
        if self.parallel.is_first:
            self.stage.save_json(DIVERGED, {"reason": reason})
        self.parallel.barrier()

    def finish(self) -> None:
        """Leave the autoencoder and its report in the stage.

        The state is saved first: where there is no room for the rest, the same command goes on from the last step. And
        where there is none for the state, there may be for the autoencoder, a third of it.
        """
        sae, state = self.learner.export(), self.learner.state
        with suppress(atomic.DiskFull):
            self.save()
        self._share_bad()
        if sae is not None:
            for name in (ours.WEIGHTS, ours.CONFIG):
                self.stage.own(name)
            sae.save(self.stage.path)
            training_section(self.stage, self.config, sae, state).write(self.stage)
            self.stage.finish(checkpoint.FOLDER)
        self.parallel.barrier()

    def _share_bad(self) -> None:
        """The first process, which writes and prints, learns which images the others left out."""
        for records in self.parallel.gather(self.learner.state.bad) or ():
            self.note_bad(records)


def begin(stage: Stage, settings: Mapping[str, Any], overwrite: bool, parallel: Parallel) -> bool:
    """Whether there is something to train. The first process holds the stage for all."""
    proceed = False
    if parallel.is_first:
        proceed = stage.begin(settings, overwrite, device=str(parallel.device), may_differ=MAY_DIFFER)
    return parallel.broadcast(proceed)


def diverged(stage: Stage) -> str | None:
    """What was not finite in the training of a stage, and when; None where nothing was."""
    path = stage.path / f"{DIVERGED}.json"
    return stage.load_json(DIVERGED)["reason"] if path.exists() else None

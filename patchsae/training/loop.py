"""The training loop, of one autoencoder or of many: tokens stream in, one optimiser step a batch, and no run is lost.

An image is decoded and goes through the tower once for all that learn. What each of them ends as does not depend on
who else learns, on where it was stopped, or on how many processes share the images but for rounding.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from patchsae import progress
from patchsae.activations import TokenBatch
from patchsae.data.left_out import each_once, left_out
from patchsae.interrupt import Interrupted, StopRequest, stopped_training
from patchsae.training.clock import CheckpointClock
from patchsae.training.learner import NonFiniteLoss
from patchsae.training.origin import Feed
from patchsae.training.trainee import Trainee


class Loop:
    """One pass over the tokens of a feed.

    Args:
        trainees: at least one, with begun stages, of configurations that read the same tokens; they share their
            processes.
        label: what progress and messages call the pass.
        dropping: whether one whose loss is not finite is dropped while the others go on; else it ends the pass.
    """

    def __init__(self, feed: Feed, trainees: Sequence[Trainee], label: str, *, dropping: bool) -> None:
        self.feed, self.source, self.trainees = feed, feed.source, list(trainees)
        self.label, self.dropping = label, dropping
        self.config, self.parallel = trainees[0].config, trainees[0].parallel
        self.clock = CheckpointClock(self.config.checkpoint_minutes)
        self.position = 0

    def run(self, images: int, log: Sequence[str] = ()) -> None:
        """From the newest checkpoints, or from the start, to the end.

        Args:
            images: of the dataset.
            log: loggers beside metrics.jsonl; see `loggers.NAMES`.

        Raises:
            NonFiniteLoss: unless it is dropped; the state before it was saved.
            Interrupted: SIGINT or SIGTERM, after the checkpoints were written.
        """
        self._open()
        begin = self.config.batch_size * self.config.start_batches
        total, done = self.source.images_total - begin, self.position - begin
        stream = None if self.parallel.is_first else io.StringIO()
        with ExitStack() as stack:
            for trainee in self.trainees:
                trainee.logging(log, stack)
            stop = stack.enter_context(StopRequest())
            self._steps(stop, stack.enter_context(progress.track(total, self.label, start=done, stream=stream)))
        for trainee in self.trainees:
            trainee.finish()
        self._say(left_out(each_once(*(trainee.learner.state.bad for trainee in self.trainees)), images))

    def _open(self) -> None:
        """Every learner at its newest checkpoint, or at the start where it has none."""
        fresh = [trainee for trainee in self.trainees if not trainee.resume()]
        first = [self.feed.of_blocks(batch) for batch in self.source.first(self.config.start_batches)] if fresh else []
        for trainee in fresh:
            trainee.learner.start([blocks[trainee.block] for blocks in first])
        self._note_bad()
        self.position = min(trainee.learner.state.position for trainee in self.trainees)
        if not fresh:
            self._say([f"{self.label}: going on after step {self._reached:,} of {self.config.steps:,}"])

    def _steps(self, stop: StopRequest, bar: progress.Progress) -> None:
        """All steps that are left, in step with the other processes. Raises Interrupted between two of them."""
        batches = stop.until_workers_die(self.source.batches(self.position))
        while self.trainees:
            batch = next(batches, None)
            self._note_bad()
            # one question for all processes: which signal came, if any, and is it time for a checkpoint
            answer = self.parallel.largest(2 * (stop.signum or 0) + self.clock.overdue)
            if answer > 1 and self.position < self.source.images_total:
                self._save()
                raise self._interrupted(answer // 2)
            if batch is None:
                return
            numbers = self._step(batch)
            bar.advance(batch.next_start - self.position, **numbers)
            self.position = batch.next_start
            self._save(due=answer != 1)

    def _step(self, batch: TokenBatch) -> dict[str, Any]:
        """All that have not seen the batch learn from it; the numbers that the progress line shows."""
        blocks = self.feed.of_blocks(batch)
        last = batch.next_start == self.source.images_total
        numbers: dict[str, Any] = {}
        for trainee in [trainee for trainee in self.trainees if trainee.learner.state.position < batch.next_start]:
            try:
                terms = trainee.step(blocks[trainee.block], last)
                numbers = {"mse": terms.mse, "l0": terms.l0}
            except NonFiniteLoss as error:
                self._diverged(trainee, error)
        return {"learning": len(self.trainees)} if self.dropping else numbers

    def _diverged(self, trainee: Trainee, error: NonFiniteLoss) -> None:
        name, state = trainee.stage.name, trainee.learner.state
        if not self.dropping:
            trainee.save()
            self._say([f"{name}: the state before it, after step {state.step:,}, is in {trainee.folder}"])
            raise error
        trainee.drop(str(error))
        self.trainees.remove(trainee)
        self._say([f"{name}: dropped, the others go on. {error}"])

    def _save(self, due: bool = False) -> None:
        """Checkpoints of all, or of those that have taken the steps after which one is due."""
        steps = self.config.checkpoint_steps if due else 1
        chosen = [trainee for trainee in self.trainees if trainee.learner.state.step % steps == 0]
        saved = [trainee.save() for trainee in chosen]
        if any(saved):
            self.clock.restart()

    def _note_bad(self) -> None:
        """Images that this process left out join those that every state has."""
        if found := self.source.bad:
            for trainee in self.trainees:
                trainee.note_bad(found)

    @property
    def _reached(self) -> int:
        """Steps that all of them have taken."""
        return min(trainee.learner.state.step for trainee in self.trainees)

    def _interrupted(self, signum: int) -> Interrupted:
        first = self.trainees[0]
        run = first.stage.path.parent
        where = f"the checkpoints are in {run}" if self.dropping else f"the checkpoint is in {first.folder}"
        return stopped_training(signum, self.label, self._reached, self.config.steps, where)

    def _say(self, lines: Sequence[str]) -> None:
        if self.parallel.is_first:
            for line in lines:
                print(line, file=sys.stderr)

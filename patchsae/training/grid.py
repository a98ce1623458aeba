"""Many autoencoders trained on one stream of tokens: an image is decoded and goes through the tower once for all.

Each is a stage of its own, which ends as `patchsae train` would leave it: the same weights, whatever else is trained
beside it. So a sweep that was killed goes on where its autoencoders were, a larger grid adds the new ones to those that
are finished, and how the grid is cut into groups does not matter.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import patchsae_kernels as pk
from patchsae import progress, words
from patchsae.activations import Stream, TokenBatch, TokenSource
from patchsae.data import BadImageRecord, ImageDataset
from patchsae.data.left_out import inherited, left_out
from patchsae.disk import atomic
from patchsae.disk.runs import Run, Stage
from patchsae.errors import PatchsaeError
from patchsae.interrupt import Interrupted, StopRequest
from patchsae.models.checkpoints import ours
from patchsae.models.clip import SplitCLIP
from patchsae.models.taps import Taps
from patchsae.parallel.base import Alone
from patchsae.training import checkpoint, sizes
from patchsae.training.config import TrainConfig
from patchsae.training.grid_config import Cell
from patchsae.training.learner import Learner, NonFiniteLoss
from patchsae.training.section import training_section
from patchsae.training.trainer import MAY_DIFFER

DIVERGED = "diverged"
"""Name (.json) of what is left in the stage of an autoencoder whose loss was not finite."""


class TooLarge(PatchsaeError):
    """One autoencoder of a grid does not fit into the memory."""


@dataclass(frozen=True)
class Member:
    """An autoencoder of a sweep, done with."""

    cell: Cell
    stage: Stage
    """Finished, and `load_sae(stage.path)` opens it; not where it diverged."""
    diverged: str | None
    """What was not finite, and when; None where it was trained to the end."""


def train_grid(
    clip: SplitCLIP,
    dataset: ImageDataset,
    cells: Sequence[Cell],
    run: Run,
    *,
    memory: int,
    origin: Mapping[str, str | int | float | None] | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> list[Member]:
    """Train the cells that are not finished yet, as many at a time as fit into `memory`, or go on with them.

    What is needed and how it is cut is announced on standard error before it begins. An autoencoder whose loss is not
    finite is dropped with a warning; the others go on.

    Parameters
    ----------
    cells: of one `Grid`, so that all see the same tokens.
    run: receives a stage per cell, under its name, and a report.
    memory: bytes; see `group_bytes`.
    origin, workers, overwrite: as for `patchsae.training.trainer.train`.

    Raises
    ------
    TooLarge: a cell does not fit alone; nothing was written.
    ValueError: started by torchrun.
    Interrupted: SIGINT or SIGTERM, after the checkpoints were written.
    ConfigDiffers: a cell was begun with other settings.
    BadImage: an image cannot be decoded and `on_bad_image` is "stop".
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a sweep runs in one process; start it without torchrun")
    waiting = [cell for cell in cells if overwrite or not run.stage(cell.name).finished]
    groups = _groups(clip, waiting, memory)
    found = {key: value for key, value in (origin or {}).items() if value is not None}
    trainer = _Trainer(clip, dataset, run, found, workers, overwrite)
    trainer.train([cell for cell in cells if cell not in waiting], run.root.name)  # says so
    for number, group in enumerate(groups, 1):
        trainer.train(group, run.root.name + ("" if len(groups) == 1 else f" ({number} of {len(groups)})"))
    return [Member(cell, run.stage(cell.name), _diverged(run.stage(cell.name))) for cell in cells]


def group_bytes(clip: SplitCLIP, cells: Sequence[Cell]) -> int:
    """Memory that some cells take when they are trained together: every state, one working set, tower, tokens."""
    tokens, blocks = clip.image_tokens, len({cell.layer for cell in cells})
    each = [sizes.training_sizes(cell.config, clip.width, tokens) for cell in cells]
    return sum(size.state for size in each) + _shared_bytes(clip, cells, blocks) + max(size.working for size in each)


def _shared_bytes(clip: SplitCLIP, cells: Sequence[Cell], blocks: int) -> int:
    config, tokens = cells[0].config, clip.image_tokens
    streams = 4 * config.batch_size * tokens * clip.width * blocks  # a second time, side by side
    window = blocks * sizes.window_bytes(config, clip.width, tokens)
    return sizes.tower_bytes(config.batch_size, clip.width, tokens) + 2 * streams + window


def _groups(clip: SplitCLIP, cells: Sequence[Cell], memory: int) -> list[list[Cell]]:
    """The cells in groups that fit, announced. Raises TooLarge."""
    for cell in cells:
        alone = group_bytes(clip, [cell])
        if alone > memory:
            raise TooLarge(
                f"{cell.name} needs {words.size(alone)} and {words.size(memory)} may be used: give a smaller "
                "--expansion or --batch-size, --accumulate, or more with --memory-gb"
            )
    groups: list[list[Cell]] = []
    for cell in cells:
        if groups and group_bytes(clip, [*groups[-1], cell]) <= memory:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    if not groups:
        return groups
    most = max(group_bytes(clip, group) for group in groups)
    how = "together" if len(groups) == 1 else f"in {len(groups)} groups, each with a pass over the images"
    print(
        f"sweep: {words.counted(len(cells), 'autoencoder')} {how}; {words.size(most)} of memory at most, of "
        f"{words.size(memory)}; {words.size(_disk_bytes(clip, cells))} on disk while they run",
        file=sys.stderr,
    )
    return groups


def _disk_bytes(clip: SplitCLIP, cells: Sequence[Cell]) -> int:
    each = [sizes.training_sizes(cell.config, clip.width, clip.image_tokens) for cell in cells]
    kept = cells[0].config.keep_checkpoints
    return sum(kept * size.state for size in each) + max(size.state for size in each)


class _Trainer:
    """Trains groups of cells, each in one pass over the images."""

    def __init__(
        self,
        clip: SplitCLIP,
        dataset: ImageDataset,
        run: Run,
        origin: Mapping[str, str | int | float],
        workers: int,
        overwrite: bool,
    ) -> None:
        self.clip, self.dataset, self.origin = clip, dataset, origin
        self.run, self.workers, self.overwrite = run, workers, overwrite

    def train(self, cells: Sequence[Cell], label: str) -> None:
        if not cells:
            return
        # settings that do not fit are refused before any stage has begun
        self._source([cell.layer for cell in cells], cells[0].config)
        learners = [self._learner(cell) for cell in cells]
        with ExitStack() as stages:
            begun = [self._begun(cell, learner, stages) for cell, learner in zip(cells, learners, strict=True)]
            trainees = [trainee for trainee in begun if trainee is not None]
            if trainees:
                self._learn(trainees, label)

    def _source(self, layers: Sequence[int], config: TrainConfig) -> tuple[Stream, Taps]:
        taps = Taps(self.clip, sorted(set(layers)))
        return Stream(taps, self.dataset, config.stream_plan(), self.workers), taps

    def _learner(self, cell: Cell) -> Learner:
        metadata = {**self.clip.metadata, "layer": cell.layer, **self.origin, "dataset": self.dataset.name}
        return Learner(cell.config, self.clip.width, self.clip.device, Alone(self.clip.device), metadata)

    def _begun(self, cell: Cell, learner: Learner, stages: ExitStack) -> _Trainee | None:
        """None for a cell that is finished, or diverged."""
        stage = stages.enter_context(self.run.stage(cell.name, "sweep"))
        habits = inherited(cell.config.on_bad_image)
        metadata = {**self.clip.metadata, "layer": cell.layer, **self.origin, **habits}
        made_from = {"clip_fingerprint": self.clip.fingerprint, "dataset": self.dataset.fingerprint}
        settings = {**metadata, **made_from, **asdict(cell.config), "workers": self.workers}
        if not stage.begin(settings, self.overwrite, device=str(self.clip.device), may_differ=MAY_DIFFER):
            return None
        if _diverged(stage) is not None:
            return None
        return _Trainee(cell, stage, learner)

    def _learn(self, trainees: list[_Trainee], label: str) -> None:
        config = trainees[0].cell.config
        source, taps = self._source([trainee.cell.layer for trainee in trainees], config)
        with StopRequest() as stop:
            _start(trainees, source, taps)
            begin = min(trainee.learner.state.position for trainee in trainees)
            first = config.batch_size * config.start_batches
            with progress.track(source.images_total - first, label, start=begin - first) as bar:
                for batch in stop.until_workers_die(source.batches(begin)):
                    trainees = _step(trainees, batch, source, taps)
                    bar.advance(batch.next_start - begin, learning=len(trainees))
                    begin = batch.next_start
                    if stop.signum is not None or not trainees:
                        break
            if stop.signum is not None and trainees and begin < source.images_total:
                raise self._interrupted(stop.signum, trainees)
        for trainee in trainees:
            trainee.finish()
        for line in left_out(source.bad, len(self.dataset)):
            print(line, file=sys.stderr)

    def _interrupted(self, signum: int, trainees: Sequence[_Trainee]) -> Interrupted:
        for trainee in trainees:
            trainee.save()
        step = min(trainee.learner.state.step for trainee in trainees)
        return Interrupted(
            signum,
            f"{self.run.root.name}: stopped after step {step:,} of {trainees[0].cell.config.steps:,}; the checkpoints "
            f"are in {self.run.root}. The same command goes on from there.",
        )


class _Trainee:
    """One autoencoder on its way through a pass."""

    def __init__(self, cell: Cell, stage: Stage, learner: Learner) -> None:
        self.cell, self.stage, self.learner = cell, stage, learner
        self.folder = stage.folder(checkpoint.FOLDER)
        atomic.remove_partial(self.folder)
        self._saved = time.monotonic()
        self._logged: tuple[float, int] | None = None  # when, after how many images

    def restore(self) -> None:
        """Go on from the newest checkpoint."""
        self.learner.blank()
        checkpoint.restore(self.folder, self.learner.state, self.learner.parallel)

    def save(self) -> None:
        checkpoint.save(self.folder, self.learner.state, self.learner.parallel, self.cell.config.keep_checkpoints)
        self._saved = time.monotonic()

    def step(self, batch: TokenBatch, bad: Sequence[BadImageRecord], last: bool) -> None:
        """Learn, log, save where it is time. Raises NonFiniteLoss with the state unchanged."""
        learner, config = self.learner, self.cell.config
        terms = learner.step(batch)
        self.note(bad)
        step = learner.state.step
        if step == 1 or step % config.log_every == 0 or last:
            self._log(batch, terms)
        if step % config.checkpoint_steps == 0 or time.monotonic() - self._saved > 60 * config.checkpoint_minutes:
            self.save()

    def note(self, bad: Sequence[BadImageRecord]) -> None:
        state = self.learner.state
        state.bad = list({record.index: record for record in [*state.bad, *bad]}.values())

    def drop(self, reason: str) -> None:
        """Leave what happened, and the state before it."""
        self.save()
        self.stage.save_json(DIVERGED, {"reason": reason})
        print(f"{self.stage.name}: dropped, the others go on. {reason}", file=sys.stderr)

    def finish(self) -> None:
        """Leave the autoencoder and its report in the stage."""
        sae = self.learner.export()
        assert sae is not None  # one process is the first one
        for name in (ours.WEIGHTS, ours.CONFIG):
            self.stage.own(name)
        sae.save(self.stage.path)
        training_section(self.stage, self.cell.config, sae, self.learner.state).write(self.stage)
        self.stage.finish(checkpoint.FOLDER)

    def _log(self, batch: TokenBatch, terms: pk.StepTerms) -> None:
        now, images = time.monotonic(), self.learner.state.images
        then, before = self._logged or (self._saved, images - batch.images)
        self._logged = now, images
        row = self.learner.record(batch, terms)
        self.stage.append_metrics({**row, "images_per_s": (images - before) / (now - then)})


def _start(trainees: Sequence[_Trainee], source: TokenSource, taps: Taps) -> None:
    """Every learner at its last checkpoint, or at its start."""
    first: list[TokenBatch] = []
    for trainee in trainees:
        if checkpoint.exists(trainee.folder):
            trainee.restore()
        else:
            first = first or source.first(trainee.cell.config.start_batches)
            trainee.learner.start([_of_block(batch, trainee.cell.layer, taps) for batch in first])
            trainee.note(source.bad)
        trainee.stage.keep_metrics(lambda row, state=trainee.learner.state: row["step"] <= state.step)  # type: ignore[misc]


def _step(trainees: list[_Trainee], batch: TokenBatch, source: TokenSource, taps: Taps) -> list[_Trainee]:
    """All that have not seen the batch learn from it; those that are left, without what diverged."""
    parts = {block: _of_block(batch, block, taps) for block in taps.blocks}
    left = []
    for trainee in trainees:
        if trainee.learner.state.position < batch.next_start:
            try:
                trainee.step(parts[trainee.cell.layer], source.bad, batch.next_start == source.images_total)
            except NonFiniteLoss as error:
                trainee.drop(str(error))
                continue
        left.append(trainee)
    return left


def _of_block(batch: TokenBatch, block: int, taps: Taps) -> TokenBatch:
    return dataclasses.replace(batch, tokens=taps.stream(batch.tokens, block))


def _diverged(stage: Stage) -> str | None:
    path = stage.path / f"{DIVERGED}.json"
    return stage.load_json(DIVERGED)["reason"] if path.exists() else None

"""Training a sparse autoencoder: tokens stream in, one optimiser step a batch, and no run is lost."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import torch

import patchsae_kernels as pk
from patchsae import progress
from patchsae.activations import CachedTokens, Stream, TokenBatch, TokenSource
from patchsae.data import BadImageRecord, ImageDataset
from patchsae.data.left_out import inherited, left_out
from patchsae.disk import atomic
from patchsae.disk.runs import Stage
from patchsae.interrupt import Interrupted, StopRequest
from patchsae.models.checkpoints import ours
from patchsae.models.checkpoints.load import load_sae
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.parallel.base import Alone, Parallel
from patchsae.training import checkpoint
from patchsae.training.config import TrainConfig
from patchsae.training.learner import Learner, NonFiniteLoss
from patchsae.training.loggers import Loggers, check_names, open_loggers
from patchsae.training.section import training_section

MAY_DIFFER = (
    "workers",
    "latent_shards",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "on_bad_image",
)


def train(
    clip: SplitCLIP,
    dataset: ImageDataset,
    config: TrainConfig,
    stage: Stage,
    *,
    origin: Mapping[str, str | int | float | None] | None = None,
    workers: int = 0,
    overwrite: bool = False,
    log: Sequence[str] = (),
    parallel: Parallel | None = None,
) -> SparseAutoencoder:
    """Train on the residual stream of images, or go on where a killed or interrupted run of the same settings stopped.

    The defaults of `config` are the released recipe. Its code rescales the rows of W_dec at the start of the next step
    and not at the end of this one, so its final rows are one step off unit norm; the losses are the same. On the CPU a
    resumed run ends with the same bits as an unbroken one.

    Parameters
    ----------
    stage: receives the autoencoder (`load_sae(stage.path)`), metrics.jsonl, checkpoints while running, and the
        training part of the report.
    origin: where the images came from (`images` and what else opens them again); recorded in config.toml and in the
        autoencoder's metadata, for later stages.
    workers: processes that decode images; the result does not depend on it.
    overwrite: start afresh whatever the stage holds.
    log: loggers beside metrics.jsonl; see `loggers.NAMES`.
    parallel: the processes that train together (`open_parallel`), each with the same arguments and a folder that all
        of them see; left out: this one alone.

    Returns
    -------
    the trained autoencoder on the device of `clip`; that of the stage if it had finished already.

    Raises
    ------
    NonFiniteLoss: the message names the step and its images; the state before it was saved.
    Interrupted: SIGINT or SIGTERM, after the checkpoint was written; a SystemExit.
    DamagedCheckpoints: there are checkpoints to go on from, and all of them are damaged.
    BadImage: an image cannot be decoded and `config.on_bad_image` is "stop".
    """
    found = {key: value for key, value in (origin or {}).items() if value is not None}
    made_from = {**clip.metadata, "clip_fingerprint": clip.fingerprint, **found, "dataset": dataset.fingerprint}
    settings = {**made_from, **asdict(config), "workers": workers}
    parallel = parallel or Alone(clip.device)
    check_names(log)
    # before the stage is begun: settings that are refused shall not be those that it was begun with
    source = Stream(clip, dataset, config.stream_plan(), workers, parallel)
    metadata = {**clip.metadata, "dataset": dataset.name, **found, **inherited(config.on_bad_image)}
    learner = Learner(config, clip.width, clip.device, parallel, metadata)
    with stage:
        if not _begin(stage, settings, overwrite, parallel):
            return load_sae(stage.path, clip.device)
        return _Training(source, learner, stage).run(log, len(dataset))


def train_from_cache(
    cache: Path,
    config: TrainConfig,
    stage: Stage,
    *,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    log: Sequence[str] = (),
    parallel: Parallel | None = None,
) -> SparseAutoencoder:
    """`train` on the activations that `write_cache` left in a folder: no images and no CLIP are needed.

    Raises
    ------
    FileNotFoundError: `cache` is no cache.
    DamagedShard: a shard of it is not what was written.
    """
    parallel = parallel or Alone(device)
    source = CachedTokens(cache, config.stream_plan(), parallel, parallel.device)
    index = source.index
    made_from = {**index.model, "clip_fingerprint": index.clip_fingerprint, **index.origin}
    # what the cache did about bad images is what was done here
    settings = {**asdict(config), **made_from, "dataset": index.dataset_fingerprint, "cache": source.fingerprint}
    check_names(log)
    metadata = {**index.model, "dataset": index.dataset, **index.origin}
    learner = Learner(config, source.width, parallel.device, parallel, metadata)
    with stage:
        if not _begin(stage, settings, overwrite, parallel):
            return load_sae(stage.path, parallel.device)
        return _Training(source, learner, stage).run(log, index.images)


def _begin(stage: Stage, settings: Mapping[str, object], overwrite: bool, parallel: Parallel) -> bool:
    """Whether there is something to do. The first process holds the stage for all."""
    proceed = False
    if parallel.is_first:
        proceed = stage.begin(settings, overwrite, device=str(parallel.device), may_differ=MAY_DIFFER)
    return parallel.broadcast(proceed)


class _Training:
    """One run of `train` on a begun stage."""

    def __init__(self, source: TokenSource, learner: Learner, stage: Stage) -> None:
        self.source, self.learner, self.stage = source, learner, stage
        self.config, self.parallel = learner.config, learner.parallel
        self.folder = stage.path / checkpoint.FOLDER
        self._saved, self._saved_step = time.monotonic(), -1
        self._logged = self._saved, 0  # when, and how many images had been trained on

    def run(self, log: Sequence[str], dataset_images: int) -> SparseAutoencoder:
        """From the newest checkpoint, or from the start, to the end."""
        self._open()
        self._logged = time.monotonic(), self.learner.state.images
        first = self.parallel.is_first
        start = self.config.batch_size * self.config.start_batches
        total, done = self.source.images_total - start, self.learner.state.position - start
        stream = None if first else io.StringIO()
        with ExitStack() as stack:
            logger = stack.enter_context(open_loggers(log, self.stage)) if first else None
            stop = stack.enter_context(StopRequest())
            bar = stack.enter_context(progress.track(total, self.stage.name, start=done, stream=stream))
            self._steps(stop, bar, logger)
        return self._finish(dataset_images)

    def _open(self) -> None:
        """Put the learner at the newest checkpoint, or at the start where there is none."""
        learner, first = self.learner, self.parallel.is_first
        if first:
            atomic.remove_partial(self.stage.folder(checkpoint.FOLDER))
        if self.parallel.broadcast(checkpoint.exists(self.folder)):
            learner.blank()
            checkpoint.restore(self.folder, learner.state, self.parallel)
            self._say([f"{self.stage.name}: going on after step {learner.state.step:,} of {self.config.steps:,}"])
        else:
            learner.start(self.source.first(self.config.start_batches))
            self._note_bad()
        if first:
            self.stage.keep_metrics(lambda row: row["step"] <= learner.state.step)

    def _steps(self, stop: StopRequest, bar: progress.Progress, logger: Loggers | None) -> None:
        """All steps that are left, in step with the other processes. Raises Interrupted between two of them."""
        state = self.learner.state
        stream = stop.until_workers_die(self.source.batches(state.position))
        while True:
            batch = next(stream, None)
            self._note_bad()
            # one question for all processes: which signal came, if any, and is it time for a checkpoint
            answer = self.parallel.largest(2 * (stop.signum or 0) + self._overdue())
            if answer > 1 and state.position < self.source.images_total:
                self._save()
                raise self._interrupted(answer // 2)
            if batch is None:
                return
            begin = state.position
            terms = self._step(batch, logger)
            bar.advance(batch.next_start - begin, mse=terms.mse, l0=terms.l0)
            if answer == 1 or state.step % self.config.checkpoint_steps == 0:
                self._save()

    def _step(self, batch: TokenBatch, logger: Loggers | None) -> pk.StepTerms:
        state, before = self.learner.state, self.learner.state.step
        try:
            terms = self.learner.step(batch)
        except NonFiniteLoss:
            self._save()
            self._say([f"{self.stage.name}: the state before it, after step {state.step:,}, is in {self.folder}"])
            raise
        last = batch.next_start == self.source.images_total
        if state.step > before and (state.step == 1 or state.step % self.config.log_every == 0 or last):
            self._log(self.learner.record(batch, terms), logger)
        return terms

    def _log(self, row: Mapping[str, float], logger: Loggers | None) -> None:
        now, (then, images) = time.monotonic(), self._logged
        self._logged = (now, self.learner.state.images)
        if logger is not None:
            logger.log({**row, "images_per_s": (self.learner.state.images - images) / (now - then)})

    def _finish(self, dataset_images: int) -> SparseAutoencoder:
        """Leave the autoencoder and the report in the stage, and name the images that were left out.

        The state is saved first: where there is no room for the rest, the same command goes on from the last step. And
        where there is none for the state, there may be for the autoencoder, a third of it.
        """
        sae, state = self.learner.export(), self.learner.state
        if self._saved_step != state.step:
            with suppress(atomic.DiskFull):
                self._save()
        self._share_bad()
        if sae is not None:
            for name in (ours.WEIGHTS, ours.CONFIG):
                self.stage.own(name)
            sae.save(self.stage.path)
            training_section(self.stage, self.config, sae, state).write(self.stage)
            self.stage.finish(checkpoint.FOLDER)
        self._say(left_out(state.bad, dataset_images))
        self.parallel.barrier()
        return load_sae(self.stage.path, self.learner.device) if sae is None else sae

    def _save(self) -> None:
        self._share_bad()
        checkpoint.save(self.folder, self.learner.state, self.parallel, self.config.keep_checkpoints)
        self._saved, self._saved_step = time.monotonic(), self.learner.state.step

    def _overdue(self) -> bool:
        return time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes

    def _note_bad(self, records: Sequence[BadImageRecord] | None = None) -> None:
        """Images that were left out, those of this process unless others are given, join those of the state."""
        state, found = self.learner.state, self.source.bad if records is None else records
        if found:
            state.bad = list({record.index: record for record in [*state.bad, *found]}.values())

    def _share_bad(self) -> None:
        """The first process, which writes and prints, learns which images the others left out."""
        for records in self.parallel.gather(self.learner.state.bad) or ():
            self._note_bad(records)

    def _interrupted(self, signum: int) -> Interrupted:
        return Interrupted(
            signum,
            f"{self.stage.name}: stopped after step {self.learner.state.step:,} of {self.config.steps:,}; the "
            f"checkpoint is in {self.folder}. The same command goes on from there.",
        )

    def _say(self, lines: Sequence[str]) -> None:
        if self.parallel.is_first:
            for line in lines:
                print(line, file=sys.stderr)

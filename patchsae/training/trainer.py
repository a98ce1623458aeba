"""Training a sparse autoencoder: images stream through the frozen CLIP, one optimiser step a batch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae import progress
from patchsae.checkpoints import ours
from patchsae.clip import SplitCLIP
from patchsae.data import Batch, BatchIterator, ImageDataset, batches, train_order
from patchsae.data.left_out import left_out
from patchsae.errors import PatchsaeError
from patchsae.interrupt import Interrupted, StopRequest
from patchsae.runs import Stage
from patchsae.sae import SAEConfig, SparseAutoencoder, load_sae
from patchsae.training import checkpoint, metrics
from patchsae.training.checkpoint import TrainState
from patchsae.training.config import TrainConfig
from patchsae.training.dead import DeadCounter
from patchsae.training.init import start_sae
from patchsae.training.schedule import learning_rate
from patchsae.training.section import training_section

MAY_DIFFER = ("workers", "checkpoint_steps", "checkpoint_minutes", "on_bad_image")


class NonFiniteLoss(PatchsaeError):
    """The loss or a gradient of a step is NaN or infinite; the parameters are as they were before it."""

    def __init__(self, step: int, ids: list[str], terms: pk.StepTerms) -> None:
        values = ", ".join(f"{name} {getattr(terms, name).item():g}" for name in ("mse", "l1", "ghost"))
        super().__init__(
            f"step {step} has a loss or a gradient that is not finite ({values}). "
            f"The last checkpoint is from before it. Images of the step: {', '.join(ids)}"
        )
        self.step = step
        self.ids = ids


def train(
    clip: SplitCLIP,
    dataset: ImageDataset,
    config: TrainConfig,
    stage: Stage,
    *,
    origin: Mapping[str, str | int | float | None] | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> SparseAutoencoder:
    """Train by the released recipe, or go on where a killed or interrupted run of the same settings stopped.

    Per step: residual stream of a batch of images, loss and gradients, dead counters, gradient of W_dec without its
    component along the rows, Adam, rows to unit norm, next learning rate. The released code rescales the rows at the
    start of the next step instead, so its final rows are one step off unit norm; the losses are the same.
    On the CPU a resumed run ends with the same bits as an unbroken one.

    Parameters
    ----------
    stage: receives the autoencoder (`load_sae(stage.path)`), metrics.jsonl, checkpoints while running, and the
        training part of the report.
    origin: where the images came from (`images` and what else opens them again); recorded in config.toml and in the
        autoencoder's metadata, for later stages.
    workers: processes that decode images; the result does not depend on it.
    overwrite: start afresh whatever the stage holds.

    Returns
    -------
    the trained autoencoder on the device of `clip`; that of the stage if it had finished already.

    Raises
    ------
    NonFiniteLoss: the message names the step and its images; the last checkpoint stays.
    Interrupted: SIGINT or SIGTERM, after the checkpoint was written; a SystemExit.
    BadImage: an image cannot be decoded and `config.on_bad_image` is "stop".
    """
    found = {key: value for key, value in (origin or {}).items() if value is not None}
    made_from = {**clip.metadata, "clip_fingerprint": clip.fingerprint, **found, "dataset": dataset.fingerprint}
    settings = {**made_from, **asdict(config), "workers": workers}
    with stage:
        if not stage.begin(settings, overwrite, device=str(clip.device), may_differ=MAY_DIFFER):
            return load_sae(stage.path, clip.device)
        metadata = {**clip.metadata, "dataset": dataset.name, **found}
        training = _Training(clip, dataset, config, stage, workers, metadata)
        training.run()
        return training.finish()


def take_step(state: TrainState, residual: Tensor, dead: Tensor, config: TrainConfig, ids: list[str]) -> pk.StepTerms:
    """One optimiser step on `residual`, float32 [B, T, D], of the images `ids`, in place on `state`.

    `dead` bool [S] is `state.dead.mask()`. Raises NonFiniteLoss with `state` unchanged.
    """
    terms, grads = pk.sae_step(
        residual,
        state.params,
        l1=config.l1,
        dead=dead,
        ghost=config.ghost,
        cls_weight=config.cls_weight,
        choice=state.choice,
        prepared=state.prepared,
    )
    # a finite loss can have gradients that are not, and one such step would spoil the next checkpoint
    if not torch.stack([terms.total, *(grad.sum() for grad in grads.values())]).isfinite().all():
        raise NonFiniteLoss(state.step + 1, ids, terms)
    state.dead.update(terms.fired)
    rate = learning_rate(state.step, lr=config.lr, warm_up_steps=config.warm_up_steps)
    pk.adam_step(state.params, grads, state.adam, lr=rate, prepared=state.prepared)
    state.step += 1
    state.images += len(residual)
    return terms


class _Training:
    """One run of `train` on a begun stage."""

    def __init__(
        self,
        clip: SplitCLIP,
        dataset: ImageDataset,
        config: TrainConfig,
        stage: Stage,
        workers: int,
        metadata: Mapping[str, str | int | float],
    ) -> None:
        self.clip, self.dataset, self.config, self.stage = clip, dataset, config, stage
        self.workers = workers
        places = config.batch_size * (config.steps + 1)  # the first batch centres b_dec
        self.order = train_order(len(dataset), places, config.seed, dataset.read_groups)
        if checkpoint.exists(stage):
            sae_config = SAEConfig(clip.width, config.expansion * clip.width, metadata=metadata)
            self.sae = SparseAutoencoder(sae_config).to(clip.device)
            self.state = self._fresh_state()
            checkpoint.restore(stage, self.state)
            print(f"{stage.name}: going on after step {self.state.step:,} of {config.steps:,}", file=sys.stderr)
        else:
            first = self._batches(0, config.batch_size)
            self.sae = self._start(first, metadata)
            self.state = self._fresh_state()
            self._note_bad(first)
        stage.keep_metrics(lambda row: row["step"] <= self.state.step)
        self._logged = (time.monotonic(), self.state.images)

    def run(self) -> None:
        """All steps that are left. Raises Interrupted between two of them."""
        config, state = self.config, self.state
        total = len(self.order) - config.batch_size
        done = state.position - config.batch_size
        saved = time.monotonic()
        with StopRequest() as stop, progress.track(total, self.stage.name, start=done) as bar:
            stream = self._batches(state.position, len(self.order))
            for batch in stop.until_workers_die(stream):
                self._note_bad(stream)
                places = batch.next_start - state.position
                terms = self._step(batch)
                bar.advance(places, mse=terms.mse, l0=terms.l0)
                if stop.signum is not None:
                    break
                overdue = time.monotonic() - saved > 60 * config.checkpoint_minutes
                if overdue or state.step % config.checkpoint_steps == 0:
                    checkpoint.save(self.stage, state)
                    saved = time.monotonic()
            if stop.signum is not None and state.position < len(self.order):
                raise self._interrupted(stop.signum)

    def finish(self) -> SparseAutoencoder:
        """Leave the autoencoder and the report in the stage, and name the images that were left out."""
        for name in (ours.WEIGHTS, ours.CONFIG):
            self.stage.own(name)
        self.sae.refresh()
        self.sae.save(self.stage.path)
        training_section(self.stage, self.config, self.sae, self.state).write(self.stage)
        self.stage.finish()
        checkpoint.remove(self.stage)
        for line in left_out(self.state.bad, len(self.dataset)):
            print(line, file=sys.stderr)
        return self.sae

    def _start(self, first: BatchIterator, metadata: Mapping[str, str | int | float]) -> SparseAutoencoder:
        batch = next(first, None)
        if batch is None:
            raise ValueError(f"dataset {self.dataset.name!r}: none of the images of the first batch can be decoded")
        config = self.config
        residual = self._residual(batch)
        return start_sae(residual, expansion=config.expansion, seed=config.seed, start=config.start, metadata=metadata)

    def _fresh_state(self) -> TrainState:
        params = self.sae.parameters_by_name()
        dead = DeadCounter(self.sae.config.d_sae, self.config.dead_window, self.clip.device)
        return TrainState(
            params, pk.adam_init(params), dead, position=self.config.batch_size, prepared=self.sae.prepared
        )

    def _batches(self, start: int, stop: int) -> BatchIterator:
        config = self.config
        on_bad_image = config.on_bad_image
        return batches(
            self.dataset, self.clip.preprocess, config.batch_size, self.order[:stop], self.workers, on_bad_image, start
        )

    def _residual(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self.clip.residual(batch.pixels).float()

    def _step(self, batch: Batch) -> pk.StepTerms:
        residual, dead = self._residual(batch), self.state.dead.mask()
        terms = take_step(self.state, residual, dead, self.config, batch.ids)
        self.state.position = batch.next_start
        last = batch.next_start == len(self.order)
        if self.state.step == 1 or self.state.step % self.config.log_every == 0 or last:
            self._log(terms, residual, dead)
        return terms

    def _log(self, terms: pk.StepTerms, residual: Tensor, dead: Tensor) -> None:
        config, state = self.config, self.state
        now = time.monotonic()
        then, images = self._logged
        self._logged = (now, state.images)
        row = metrics.record(
            terms,
            residual,
            dead,
            step=state.step,
            images=state.images,
            l1=config.l1,
            lr=learning_rate(state.step - 1, lr=config.lr, warm_up_steps=config.warm_up_steps),
            images_per_s=(state.images - images) / (now - then),
        )
        self.stage.append_metrics(row)

    def _note_bad(self, stream: BatchIterator) -> None:
        if stream.bad:
            known = {record.index: record for record in [*self.state.bad, *stream.bad]}
            self.state.bad = list(known.values())

    def _interrupted(self, signum: int) -> Interrupted:
        checkpoint.save(self.stage, self.state)
        return Interrupted(
            signum,
            f"{self.stage.name}: stopped after step {self.state.step:,} of {self.config.steps:,}; the checkpoint is in "
            f"{self.stage.path}. The same command goes on from there.",
        )

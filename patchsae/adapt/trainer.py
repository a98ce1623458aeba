"""Training an adapter: the few images stream by, cropped anew in every epoch, one optimiser step a batch."""

from __future__ import annotations

import math
import sys

import torch
from torch.nn import functional as F

from patchsae import progress
from patchsae.adapt import checkpoint
from patchsae.adapt.checkpoint import AdapterState
from patchsae.adapt.forward import Source, StepInput, open_source
from patchsae.adapt.options import AdaptOptions
from patchsae.adapt.recipes import Recipe
from patchsae.adapters import AdaptedCLIP
from patchsae.data import BadImageRecord, ImageDataset
from patchsae.data.left_out import each_once
from patchsae.disk.runs import Stage
from patchsae.errors import PatchsaeError
from patchsae.interrupt import Interrupted, StopRequest, stopped_training
from patchsae.training.clock import CheckpointClock, Speed

MOMENTUM = 0.9  # of SGD, in all of Dassl's trainers


class NonFiniteStep(PatchsaeError):
    """The loss or a gradient of a step is NaN or infinite; the adapter is as it was before it."""

    def __init__(self, step: int, loss: float, ids: list[str]) -> None:
        what = f"has the loss {loss:g}" if not math.isfinite(loss) else "has a gradient that is not finite"
        super().__init__(
            f"step {step} {what}. The last checkpoint is from before it; a smaller --lr may help. "
            f"Images of the step: {', '.join(ids)}"
        )
        self.step = step
        self.ids = ids


def train_adapter(
    adapted: AdaptedCLIP, training: ImageDataset, recipe: Recipe, options: AdaptOptions, stage: Stage
) -> AdapterState:
    """Train in place by cross-entropy, or go on from the checkpoint of the stage; the last one stays there.

    On the CPU a resumed training ends with the same bits as an unbroken one. The number of workers changes nothing.

    Args:
        adapted: untrained, with the classes of ``training``.
        stage: begun by the caller; receives metrics.jsonl and checkpoints.

    Raises:
        NonFiniteStep: naming the step and its images.
        Interrupted: SIGINT or SIGTERM, after the checkpoint was written.
        BadImage: an image cannot be decoded and ``options.on_bad_image`` is "stop".
        ValueError: none of the images can be read.
    """
    return _Training(adapted, training, recipe, options, stage).run()


def take_step(state: AdapterState, source: Source, item: StepInput, rate: float) -> tuple[float, int]:
    """One optimiser step, in place; (loss, how many of its images are classified correctly).

    Raises NonFiniteStep with the tensors unchanged.
    """
    state.optimiser.zero_grad(set_to_none=True)
    logits = source.logits(item.inputs)
    labels = item.labels.to(logits.device)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    gradients = [parameter.grad for parameter in state.params.values() if parameter.grad is not None]
    correct = (logits.argmax(dim=1) == labels).sum()
    numbers = torch.stack([loss.detach(), correct.to(loss.dtype), *(gradient.sum() for gradient in gradients)]).tolist()
    if not all(map(math.isfinite, numbers)):  # a finite loss can have gradients that are not
        raise NonFiniteStep(item.step + 1, numbers[0], item.ids)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.step()
    state.images += len(labels)
    return numbers[0], int(numbers[1])


class _Training:
    """One call of `train_adapter`."""

    def __init__(
        self, adapted: AdaptedCLIP, training: ImageDataset, recipe: Recipe, options: AdaptOptions, stage: Stage
    ) -> None:
        self.recipe, self.options, self.stage = recipe, options, stage
        self.source = open_source(adapted, training, recipe, options, label=stage.name)
        params = adapted.trainable()
        self.state = AdapterState(params, _optimiser(recipe, list(params.values())))
        if checkpoint.exists(stage):
            checkpoint.restore(stage, self.state)
            if self.state.step < self.source.steps:
                reached = f"{self.state.step:,} of {self.source.steps:,}"
                print(f"{stage.name}: going on after step {reached}", file=sys.stderr)
        stage.keep_metrics(lambda row: row["step"] <= self.state.step)
        self._speed = Speed(self.state.images)

    def run(self) -> AdapterState:
        """All steps that are left, and the last checkpoint."""
        state, source = self.state, self.source
        clock = CheckpointClock(self.options.save_minutes)
        total, done = source.steps * source.batch_size, state.step * source.batch_size
        with StopRequest() as stop, progress.track(total, self.stage.name, start=done) as bar:
            stream = source.stream(state.step)
            for item in stop.until_workers_die(stream):
                taken = item.step + 1 - state.step
                loss, rate = self._step(item)
                self._note_bad(stream.bad)
                bar.advance(taken * source.batch_size, loss=loss, lr=rate)
                if stop.signum is not None:
                    break
                if clock.overdue or state.step % self.options.checkpoint_steps == 0:
                    checkpoint.save(self.stage, state)
                    clock.restart()
            if stop.signum is not None and state.step < source.steps:
                raise self._interrupted(stop.signum)
            self._note_bad(stream.bad)
        return self._finish()

    def _step(self, item: StepInput) -> tuple[float, float]:
        """Take a step and count it; (loss, learning rate)."""
        state = self.state
        rate = self.recipe.rate(item.step, self.source.steps_per_epoch)
        loss, correct = take_step(state, self.source, item, rate)
        state.step = item.step + 1
        state.loss_sum += loss * len(item.labels)
        state.correct += correct
        state.seen += len(item.labels)
        if state.step == 1 or state.step % self.options.log_every == 0 or state.step == self.source.steps:
            self._log(rate)
        return loss, rate

    def _log(self, rate: float) -> None:
        """A line about the steps since the last one."""
        state = self.state
        row = {
            "step": state.step,
            "epoch": (state.step - 1) // self.source.steps_per_epoch + 1,
            "images": state.images,
            "loss": state.loss_sum / state.seen,
            "accuracy": state.correct / state.seen,
            "lr": rate,
            "images_per_s": self._speed.since(state.images),
        }
        self.stage.append_metrics(row)
        state.loss_sum, state.correct, state.seen = 0.0, 0, 0

    def _note_bad(self, records: list[BadImageRecord]) -> None:
        if records:
            self.state.bad = each_once(self.state.bad, [self.source.among_the_few(record) for record in records])

    def _finish(self) -> AdapterState:
        if self.state.images == 0:
            raise ValueError("none of the training images can be read; expected at least one")
        self.state.step = self.source.steps
        checkpoint.save(self.stage, self.state)
        return self.state

    def _interrupted(self, signum: int) -> Interrupted:
        checkpoint.save(self.stage, self.state)
        where = f"the checkpoint is in {self.stage.path}"
        return stopped_training(signum, self.stage.name, self.state.step, self.source.steps, where)


def _optimiser(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)

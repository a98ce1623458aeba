"""What a training would take: steps, memory and disk counted, time measured for ten seconds. Nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from patchsae.activations import CachedTokens
from patchsae.data import ImageDataset
from patchsae.models.clip import SplitCLIP
from patchsae.parallel.base import Alone
from patchsae.training.config import STRENGTH, TrainConfig
from patchsae.training.learner import Learner
from patchsae.training.sizes import tower_bytes, trained_tokens, training_sizes, window_bytes
from patchsae.training.timing import (
    Line,
    Phase,
    Timings,
    batch_of,
    read_cache,
    read_images,
    thin_out,
    time_line,
    time_phase,
)
from patchsae.words import counted, duration, size

SECONDS = 10.0


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found; `lines` prints it."""

    config: TrainConfig
    width: int
    tokens_per_image: int
    device: str
    source: str
    timings: Timings
    workers: int

    @property
    def dense_steps(self) -> int:
        """Steps that are taken to be as dense as the start: the warm-up, in which the sparsity term acts little."""
        return min(self.config.warm_up_steps, self.config.steps) if self.config.variant in _THINS_OUT else 0

    @property
    def seconds(self) -> float:
        """The whole run: `dense_steps` as at the start, the others as in the sparse phase."""
        sparse = self.config.steps - self.dense_steps
        return self.dense_steps * self.step_seconds(self.timings.start) + sparse * self.step_seconds(
            self.timings.sparse
        )

    def step_seconds(self, phase: Phase) -> float:
        """One step of a phase with its share of the tower and, as far as they are not done beside, of the images."""
        images = self.config.batch_size
        compute = (self.timings.tower or Line(0.0, 0.0)).at(images) + phase.step.at(images)
        read = self.timings.read.at(images)
        return max(compute, read / self.workers) if self.workers else compute + read

    def lines(self) -> list[str]:
        """What a reader wants to know before a run."""
        return [*self._size_lines(), *self._time_lines(), "nothing was written"]

    def _size_lines(self) -> list[str]:
        config = self.config
        sizes = training_sizes(config, self.width, self.tokens_per_image)
        tower = tower_bytes(config.batch_size, self.width, self.tokens_per_image) if self.timings.tower else 0
        window = window_bytes(config, self.width, self.tokens_per_image)
        mixing = f", tokens to mix {size(window)}" if window else ""
        kept = config.keep_checkpoints
        return [
            f"steps    {config.steps:,} of {counted(config.batch_size, 'image')} ({config.total_images:,} in all); "
            f"{config.variant}, S = {config.expansion * self.width:,}, D = {self.width}, T = {self.tokens_per_image}",
            f"memory   {size(sizes.state + sizes.working + tower + window)}: parameters {size(sizes.parameters)}, "
            f"moments {size(sizes.moments)}, working set of a step {size(sizes.working)}, "
            f"tower {size(tower)}{mixing}; beside the weights of the CLIP",
            f"disk     {size((kept + 1) * sizes.state)} while it runs ({counted(kept, 'checkpoint')} of "
            f"{size(sizes.state)} and one being written), {size(sizes.parameters)} in the end",
        ]

    def _time_lines(self) -> list[str]:
        t, images = self.timings, self.config.batch_size
        beside = f"beside it, in {self.workers} processes or threads" if self.workers else "before it"
        parts = [
            f"measured in {duration(t.seconds)} on {self.device} with {counted(torch.get_num_threads(), 'thread')}, on "
            f"steps of up to {counted(max(t.start.step.most, t.sparse.step.most), 'image')} of {self.source}; more are "
            "extrapolated:",
            f"  images {duration(t.read.at(images) / max(1, self.workers))} a step ({beside})"
            + (f", tower {duration(t.tower.at(images))} a step" if t.tower else ", no tower"),
            f"  start  L0 {t.start.l0:,.0f}: {duration(self.step_seconds(t.start))} a step in all",
        ]
        if self.config.variant in _THINS_OUT:
            parts.append(f"  sparse L0 {t.sparse.l0:,.0f}: {duration(self.step_seconds(t.sparse))} a step in all")
            how = f"the first {counted(self.dense_steps, 'step')} as dense as the start, the others sparse"
        else:
            how = (
                f"every step as at the start: {self.config.variant} keeps {counted(self.config.k, 'latent')} throughout"
            )
        return [*parts, f"time     {duration(self.seconds)} ({how})"]


_THINS_OUT = tuple(variant for variant, option in STRENGTH.items() if option != "k")


def estimate(
    clip: SplitCLIP, dataset: ImageDataset, config: TrainConfig, *, workers: int = 0, seconds: float = SECONDS
) -> Estimate:
    """Measure the tower and the training step on this machine for about `seconds`, and count the rest.

    clip: random weights do, but for how many latents of a trained autoencoder would be active.
    dataset: its first images, in the order of the training, are read.
    """
    began, share = time.perf_counter(), seconds / 4
    pixels, read = read_images(clip, dataset, config, share)
    tower = time_line(lambda n: clip.residual(pixels[:n]), len(pixels), share, clip.device)
    with torch.no_grad():
        tokens = clip.residual(pixels)[:, : trained_tokens(config, clip.image_tokens)].float()
    start, sparse = _phases(tokens, config, share)
    timings = Timings(read, tower, start, sparse, time.perf_counter() - began)
    return Estimate(config, clip.width, clip.image_tokens, clip.device.type, dataset.name, timings, workers)


def estimate_from_cache(
    cache: Path, config: TrainConfig, *, device: torch.device | str = "cpu", seconds: float = SECONDS
) -> Estimate:
    """`estimate` of a training on cached activations, which needs neither images nor a tower."""
    began, share = time.perf_counter(), seconds / 4
    source = CachedTokens(cache, config.stream_plan(), device=device)
    tokens, read = read_cache(source, config, share)
    length = trained_tokens(config, tokens.shape[1])
    start, sparse = _phases(tokens[:, :length].contiguous(), config, share)
    timings = Timings(read, None, start, sparse, time.perf_counter() - began)
    return Estimate(config, source.width, tokens.shape[1], tokens.device.type, str(cache), timings, workers=1)


def _phases(tokens: Tensor, config: TrainConfig, seconds: float) -> tuple[Phase, Phase]:
    """A step at the start and in the sparse phase, on tokens [B, T, D], each measured for about `seconds`."""
    learner = Learner(config, tokens.shape[-1], tokens.device, Alone(tokens.device), metadata={})
    learner.start([batch_of(tokens)])
    start = time_phase(learner, tokens, seconds)
    if config.variant not in _THINS_OUT:
        return start, start
    thin_out(learner, tokens)
    return start, time_phase(learner, tokens, seconds)

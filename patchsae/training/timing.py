"""How long the parts of a training step take on this machine, from a few images and a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from patchsae.activations import TokenBatch, TokenSource
from patchsae.data import Batch, ImageDataset, batches, train_order
from patchsae.models.clip import SplitCLIP
from patchsae.training.config import STRENGTH, TrainConfig
from patchsae.training.learner import Learner

SPARSE_L0 = 149
"""Active latents of a token after the paper's training: what the sparse phase is measured at."""
SAMPLE_TOKENS = 256
"""Tokens whose pre-activations say which bias makes latents that sparse."""
MOST_IMAGES = 32


@dataclass(frozen=True)
class Line:
    """Seconds as a function of images: fixed + per_image * images, from timings of few images."""

    fixed: float
    per_image: float
    most: int = 1
    """Images that were timed at once; more are extrapolated."""

    def at(self, images: int) -> float:
        return self.fixed + self.per_image * images


@dataclass(frozen=True)
class Phase:
    """A step as it was measured in one phase of training."""

    l0: float
    """Mean number of active latents of a token."""
    step: Line
    """With as many micro-batches as the configuration asks for."""


@dataclass(frozen=True)
class Timings:
    """Ten seconds on this machine."""

    read: Line
    """Images decoded and preprocessed in one process, or read from a cache."""
    tower: Line | None
    """None with a cache."""
    start: Phase
    """With the autoencoder as it starts."""
    sparse: Phase
    """With its encoder bias lowered until as many latents are active as after training."""
    seconds: float
    """What measuring took."""


def read_images(clip: SplitCLIP, dataset: ImageDataset, config: TrainConfig, seconds: float) -> tuple[Tensor, Line]:
    """Some preprocessed images, and how long one takes."""
    most = min(MOST_IMAGES, config.batch_size)
    order = train_order(len(dataset), most, config.seed, dataset.read_groups)
    found: list[Batch] = []
    began = time.perf_counter()
    for batch in batches(dataset, clip.preprocess, 1, order, on_bad_image="skip"):
        found.append(batch)
        if time.perf_counter() - began > seconds:
            break
    if not found:
        raise ValueError(f"dataset {dataset.name!r}: none of its first {most} images can be decoded")
    per_image = (time.perf_counter() - began) / len(found)
    return torch.cat([batch.pixels for batch in found]).to(clip.device), Line(0.0, per_image)


def read_cache(source: TokenSource, config: TrainConfig, seconds: float) -> tuple[Tensor, Line]:
    """Tokens [B, T, D] of some cached images, and how long one takes."""
    first = source.first(1)[0]
    images, began = 0, time.perf_counter()
    for batch in source.batches(config.batch_size * config.start_batches):
        images += batch.images
        if time.perf_counter() - began > seconds:
            break
    tokens = first.tokens.view(first.images, -1, source.width)[:MOST_IMAGES]
    return tokens, Line(0.0, (time.perf_counter() - began) / images)


def time_phase(learner: Learner, tokens: Tensor, seconds: float) -> Phase:
    """Steps on some of the images of `tokens`, float32 [B, T, D], from the state that the learner is in."""
    k = learner.config.k if STRENGTH[learner.config.variant] == "k" else None
    l0 = float(k or (_pre_activations(learner, tokens) > 0).sum(1, dtype=torch.float64).mean())
    step = partial(_step, learner, tokens)
    return Phase(l0, time_line(step, len(tokens), seconds, tokens.device))


def time_line(call: Callable[[int], object], most: int, seconds: float, device: torch.device) -> Line:
    """Time `call(n)` for n = 1 (twice, if there is time), 2, 4, ... within `seconds`; the line through the ends."""
    began, images = time.perf_counter(), 1
    timings = {1: _seconds(partial(call, 1), device)}  # warms up
    while images <= most and time.perf_counter() - began + timings[max(timings)] * images / max(timings) < seconds:
        timings[images] = _seconds(partial(call, images), device)
        images *= 2
    first, last = min(timings), max(timings)
    if first == last:
        return Line(0.0, timings[first] / first, first)
    per_image = max(0.0, (timings[last] - timings[first]) / (last - first))
    return Line(max(0.0, timings[first] - per_image * first), per_image, last)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_of(tokens: Tensor) -> TokenBatch:
    images = len(tokens)
    return TokenBatch(tokens=tokens, ids=[str(i) for i in range(images)], images=images, next_start=images)


@torch.no_grad()
def thin_out(learner: Learner, tokens: Tensor) -> None:
    """Lower the encoder bias until about SPARSE_L0 latents of a token are active, or an eighth of them all."""
    pre = _pre_activations(learner, tokens)
    active = min(SPARSE_L0, pre.shape[1] // 8)
    rank = max(1, pre.numel() - active * len(pre))
    learner.state.params["b_enc"] -= pre.flatten().kthvalue(rank).values


def _step(learner: Learner, tokens: Tensor, images: int) -> None:
    learner.step(batch_of(tokens[:images]))


@torch.no_grad()
def _pre_activations(learner: Learner, tokens: Tensor) -> Tensor:
    """Of SAMPLE_TOKENS tokens, evenly spaced: [SAMPLE_TOKENS, S] at most."""
    params, tokens = learner.state.params, learner.normaliser.apply(tokens).flatten(0, 1)
    sample = tokens[:: -(-len(tokens) // SAMPLE_TOKENS)]
    return torch.addmm(params["b_enc"], sample - params["b_dec"], params["W_enc"])

"""Ten steps of every variant by several processes (`tests.parallel.pool`), and a checkpoint on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchsae.activations import TokenBatch
from patchsae.parallel.base import Parallel
from patchsae.training import checkpoint
from patchsae.training.config import TrainConfig
from patchsae.training.learner import Learner

D, IMAGES, TOKENS, STEPS = 8, 6, 3, 10
"""Six images: four processes have one, two, one and two of them."""
COMMON: dict[str, Any] = {
    "expansion": 8,
    "batch_size": IMAGES,
    "total_images": IMAGES * STEPS,
    "lr": 3e-3,
    "warm_up_steps": 5,
    "l1": 0.05,
    "k": 4,
    "l0": 0.02,
    "bandwidth": 0.1,
    "auxk": 8,
    "dead_window": 1,
    "dead_term": "none",
    "prefixes": (0.125, 0.5, 1.0),
    "resample_every": 4,
    "start": "zeros",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "relu-ghost": {"dead_term": "ghost"},
    "relu-published": {"loss": "published", "l1": 0.5},
    "relu-resample": {"dead_term": "resample", "l1": 0.5},
    "topk": {"variant": "topk"},
    "topk-auxk": {"variant": "topk", "dead_term": "auxk"},
    "batchtopk": {"variant": "batchtopk"},
    "jumprelu": {"variant": "jumprelu"},
    "gated": {"variant": "gated"},
    "matryoshka-auxk": {"variant": "matryoshka", "dead_term": "auxk"},
    "clipped": {"clip_gradient": 0.05},
    "accumulated": {"accumulate": 2, "batch_size": 8, "total_images": 8 * STEPS},
    "normalised": {"normalise": "standardise"},
}


class Learned(NamedTuple):
    """A run as its first process sees it."""

    whole: dict[str, Tensor]
    """Parameters, moments, counters and buffers, whole."""
    records: list[dict[str, float]]
    """A metrics row for every step."""


def tokens(config: TrainConfig, step: int) -> Tensor:
    """[B, T, D]: mixtures of few directions and a little noise, other ones every step; far from 0, where b_dec starts,
    so that some latents are dead.
    """
    generator = torch.Generator().manual_seed(step)
    directions = torch.randn(12, D, generator=torch.Generator().manual_seed(999))
    shape = config.batch_size, TOKENS
    strength = torch.rand(*shape, 12, generator=generator) * (torch.rand(*shape, 12, generator=generator) < 0.25)
    return strength @ directions + 0.05 * torch.randn(*shape, D, generator=generator) + 2


def learner_of(parallel: Parallel, variant: str) -> Learner:
    config = TrainConfig(**COMMON | VARIANTS[variant])
    return Learner(config, D, "cpu", parallel, {"model": "none", "layer": -2})


def batch_of(parallel: Parallel, config: TrainConfig, step: int) -> TokenBatch:
    mine = parallel.images(config.batch_size)
    own = tokens(config, step)[mine]
    return TokenBatch(own, [f"{step}.{i}" for i in range(mine.start, mine.stop)], len(own), (step + 1) * IMAGES)


def learn(parallel: Parallel, variant: str, begin: int, end: int, folder: Path | None) -> Learned | None:
    """Steps begin .. end - 1; from the start or, later, from the checkpoint in `folder`, where one is left."""
    learner = learner_of(parallel, variant)
    config = learner.config
    if begin == 0:
        learner.start([TokenBatch(tokens(config, 100), ["first"], IMAGES, IMAGES)])
    else:
        assert folder is not None
        learner.blank()
        checkpoint.restore(folder, learner.state, parallel)
        assert learner.state.step == begin
    records = []
    for step in range(begin, end):
        batch = batch_of(parallel, config, step)
        records.append(learner.record(batch, learner.step(batch)))
    state = learner.state
    if folder is not None:
        checkpoint.save(folder, state, parallel, keep=1)
    held = {
        **{f"params.{name}": tensor for name, tensor in state.params.items()},
        **{f"exp_avg.{name}": tensor for name, tensor in state.adam.exp_avg.items()},
        **{f"exp_avg_sq.{name}": tensor for name, tensor in state.adam.exp_avg_sq.items()},
        "since_fired": state.dead.since_fired,
    }
    gathered = {name: parallel.full(name, tensor) for name, tensor in held.items()}
    whole = {name: tensor.clone() for name, tensor in gathered.items() if tensor is not None}
    return Learned(whole | dict(state.buffers), records) if parallel.is_first else None


def refused(parallel: Parallel) -> tuple[str, bool]:
    """What a NaN in the last process's tokens leads to, and whether the state is as it was."""
    learner = learner_of(parallel, "topk")
    learner.start([TokenBatch(tokens(learner.config, 100), ["first"], IMAGES, IMAGES)])
    before = {name: tensor.clone() for name, tensor in learner.state.params.items()}
    batch = batch_of(parallel, learner.config, 0)
    if parallel.data_rank == parallel.data_size - 1:
        batch.tokens[-1, 0, 0] = torch.nan
    try:
        learner.step(batch)
    except Exception as error:
        same = all(torch.equal(tensor, before[name]) for name, tensor in learner.state.params.items())
        return f"{type(error).__name__}: {error}", same and learner.state.step == 0
    return "", False

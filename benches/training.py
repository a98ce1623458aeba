"""A training step of every variant against the same recipe in dense PyTorch: same loss, dead term and optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import patchsae_kernels as pk
from benches.dense_training import DenseTrainer, extra_parameters
from patchsae.bench import checks
from patchsae.bench.case import Case, floor, side, unchecked
from patchsae.bench.cases import LR
from patchsae.bench.findings import Findings
from patchsae.bench.inputs import Problem, make_problem
from patchsae.bench.products import product_floor
from patchsae.bench.records import Record, record
from patchsae.bench.sizes import SIZES
from patchsae.parallel.base import Alone
from patchsae.training import variants
from patchsae.training.config import TrainConfig

PRODUCT = product_floor()
STEPS_CHECKED = 3
DEAD_SHARE = 1 / 32
"""Of the latents, drawn at random: they get the dead term."""

RECIPES: dict[str, TrainConfig] = {
    "relu": TrainConfig(),
    "gated": TrainConfig(variant="gated"),
    "jumprelu": TrainConfig(variant="jumprelu"),
    "topk": TrainConfig(variant="topk", k=64, dead_term="auxk"),
    "batchtopk": TrainConfig(variant="batchtopk", k=64, dead_term="auxk"),
    "matryoshka": TrainConfig(variant="matryoshka", k=64, dead_term="auxk"),
}
DENSE_STARTS = ("relu", "gated", "jumprelu")
"""Variants that begin with half of the latents active; the others keep k from the first step."""


@dataclass(frozen=True, eq=False)
class Training:
    """One recipe on one size, ours and the dense one, each with parameters and moments of its own."""

    problem: Problem
    config: TrainConfig
    start: bool
    """Whether b_enc is 0, as at the start of training; else it leaves the L0 of the inputs."""

    @property
    def device(self) -> torch.device:
        return self.problem.device

    @property
    def description(self) -> str:
        return self.problem.description

    @cached_property
    def dead(self) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        drawn = torch.rand(self.problem.size.d_sae, generator=generator) < DEAD_SHARE
        return drawn.to(self.device)

    @cached_property
    def initial(self) -> dict[str, Tensor]:
        found = self.problem.parameters
        if self.start or self.config.variant not in DENSE_STARTS:
            found["b_enc"] = torch.zeros_like(found["b_enc"])
        return found | extra_parameters(self.config, found["b_enc"])

    @cached_property
    def ours(self) -> _OurTrainer:
        return _OurTrainer(self.config, self.initial, self.dead)

    @cached_property
    def dense(self) -> DenseTrainer:
        return DenseTrainer(self.config, self.initial, self.dead, LR)


class _OurTrainer:
    def __init__(self, config: TrainConfig, params: dict[str, Tensor], dead: Tensor) -> None:
        self.variant, self.dead, self.alone = variants.make(config), dead, Alone(dead.device)
        self.params = {n: p.detach().clone(memory_format=torch.preserve_format) for n, p in params.items()}
        self.buffers = self.variant.buffers(self.params)
        self.adam = pk.adam_init(self.params)

    def step(self, x: Tensor) -> Tensor:
        terms, grads = self.variant.step(x, self.params, self.buffers, self.dead, self.alone)
        pk.adam_step(self.params, grads, self.adam, lr=LR)
        return terms.total


def training_cases() -> dict[str, tuple[Case, TrainConfig, bool]]:
    """Name -> case, recipe, whether it is as dense as the start."""
    chosen = [(variant, False) for variant in RECIPES] + [(variant, True) for variant in DENSE_STARTS]
    cases = [
        (_case(f"train_{variant}{'_start' if start else ''}"), RECIPES[variant], start) for variant, start in chosen
    ]
    return {case.name: (case, config, start) for case, config, start in cases}


def training_records(size: str, rounds: int, device: str = "cpu") -> Iterator[Record]:
    """Every variant at one of `patchsae.bench.sizes.SIZES`, as they come. AssertionError where ours differs."""
    problem = make_problem(SIZES[size], device)
    for case, config, start in training_cases().values():
        yield record(case, Training(problem, config, start), size, rounds)


def _case(name: str) -> Case:
    return unchecked(lambda t: t.ours.step(t.problem.x)).beside(
        name,
        side("dense autograd + torch.optim.Adam", lambda t: t.dense.step(t.problem.x), "fp32"),
        floor(PRODUCT.name, lambda t: PRODUCT.run(t.problem, 0)),
        check,
    )


def check(t: Training, ours: Tensor, dense: Tensor) -> Findings:
    """The losses of some steps, and the parameters after them, up to rounding."""
    losses = [(ours, dense)] + [(t.ours.step(t.problem.x), t.dense.step(t.problem.x)) for _ in range(STEPS_CHECKED - 1)]
    stepped = ((n, t.ours.params[n], p.detach()) for n, p in t.dense.params.items())
    return (
        *(checks.close(f"loss {step}", a, b) for step, (a, b) in enumerate(losses)),
        *(checks.stepped(name, a, b, STEPS_CHECKED * LR) for name, a, b in stepped),
    )

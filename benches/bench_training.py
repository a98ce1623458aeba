"""A training step of every variant against the same recipe in dense PyTorch: same loss, dead term and optimiser.

`python -m benches training` measures it at the paper's size; under pytest-benchmark the two are timed one after the
other at a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from rich.table import Table
from torch import Tensor

import patchsae_kernels as pk
from benches.dense_training import DenseTrainer, extra_parameters
from patchsae.bench import case as bench
from patchsae.bench.inputs import LR, SIZES, Inputs, make_inputs
from patchsae.bench.measure import Record, measure
from patchsae.bench.products import product_floor
from patchsae.parallel.base import Alone
from patchsae.training import variants
from patchsae.training.config import TrainConfig

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

    inputs: Inputs
    config: TrainConfig
    start: bool
    """Whether b_enc is 0, as at the start of training; else it leaves the L0 of the inputs."""

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def description(self) -> str:
        return self.inputs.description

    @cached_property
    def dead(self) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        drawn = torch.rand(self.inputs.size.d_sae, generator=generator) < DEAD_SHARE
        return drawn.to(self.device)

    @cached_property
    def initial(self) -> dict[str, Tensor]:
        found = dict(self.inputs.parameters)
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


def training_cases() -> dict[str, tuple[bench.Case, TrainConfig, bool]]:
    """Name -> case, recipe, whether it is as dense as the start."""
    chosen = [(variant, False) for variant in RECIPES] + [(variant, True) for variant in DENSE_STARTS]
    return {
        f"train_{variant}{'_start' if start else ''}": (_case(variant, start), RECIPES[variant], start)
        for variant, start in chosen
    }


def training_records(size: str, rounds: int, device: str = "cpu") -> Iterator[Record]:
    """Every variant at one of `patchsae.bench.inputs.SIZES`, as they come. AssertionError where ours differs."""
    inputs = make_inputs(SIZES[size], device)
    for case, config, start in training_cases().values():
        yield measure(case, Training(inputs, config, start), size, rounds)


def training_table(records: Sequence[Record]) -> Table:
    """Images a second and peak memory, ours and the dense one."""
    drawn = Table(title="training: images a second; MB beside parameters and moments, the most at any time")
    for name in ("case", "size", "images/s", "PyTorch images/s", "ratio", "peak MB", "PyTorch peak MB"):
        drawn.add_column(name, justify="left" if name in ("case", "size") else "right", no_wrap=True)
    for r in records:
        images = SIZES[r.size].images
        ours, dense = 1e3 * images / r.milliseconds, 1e3 * images / r.baseline_milliseconds
        peaks = f"{r.peak_mb:,.0f}", f"{r.baseline_peak_mb:,.0f}"
        drawn.add_row(r.op, r.size, f"{ours:.3g}", f"{dense:.3g}", f"{r.ratio:.2f}x", *peaks)
    return drawn


def _case(variant: str, start: bool) -> bench.Case:
    floor = product_floor()
    return bench.Case(
        f"train_{variant}{'_start' if start else ''}",
        lambda t: t.ours.step(t.inputs.x),
        bench.Work("dense autograd + torch.optim.Adam, fp32", lambda t: t.dense.step(t.inputs.x)),
        bench.Work(floor.name, lambda t: floor.run(t.inputs)),
        check,
    )


def check(t: Training, ours: Tensor, dense: Tensor) -> None:
    """The losses of some steps, and the parameters after them, up to rounding.

    Adam moves an element by about lr whatever its gradient, so elements with a gradient of rounding size may go either
    way.
    """
    torch.testing.assert_close(ours, dense, rtol=1e-4, atol=0)
    for _ in range(STEPS_CHECKED - 1):
        torch.testing.assert_close(t.ours.step(t.inputs.x), t.dense.step(t.inputs.x), rtol=1e-4, atol=0)
    for name, parameter in t.dense.params.items():
        apart = (t.ours.params[name] - parameter.detach()).abs() > STEPS_CHECKED * LR / 10
        assert apart.float().mean() < 0.01, f"{name}: {apart.float().mean():.1%} of the elements differ"


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return make_inputs(SIZES["small"])


@pytest.mark.parametrize("side", ["ours", "dense"])
@pytest.mark.parametrize("name", training_cases())
def test_step(benchmark: BenchmarkFixture, inputs: Inputs, name: str, side: str) -> None:
    case, config, start = training_cases()[name]
    training = Training(inputs, config, start)
    check(training, case.ours(training), case.baseline.run(training))
    step: Callable[[Training], Tensor] = case.ours if side == "ours" else case.baseline.run
    benchmark.group = name
    benchmark(step, training)

"""The masking sweep at the paper's size against one full forward pass per mask with dense latents.

`python -m benches` measures it beside the rest; under pytest-benchmark the two are timed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benches.naive_masking import naive_sweep
from benches.vit import Case, build_case
from patchsae.bench import case as bench
from patchsae.experiments.mask.embeddings import sweep_embeddings

Embeddings = dict[tuple[str, str, int], Tensor]

TOLERANCE = 1e-5


def ours(case: Case) -> Embeddings:
    swept = sweep_embeddings(case.clip, case.sae, case.pixels, case.labels, case.rankings, case.ks)
    return {tuple(variant): embedding for variant, embedding in swept.items()}


def naive(case: Case) -> Embeddings:
    parameters = case.sae.state_dict()
    return naive_sweep(case.clip.model, case.clip.layer, parameters, case.pixels, case.labels, case.rankings, case.ks)


def check(case: Case, found: Embeddings, expected: Embeddings) -> None:
    """Every embedding the same up to float32 rounding, and with them every prediction."""
    for variant, embedding in expected.items():
        difference = float((found[variant] - embedding).abs().max())
        assert difference <= TOLERANCE, f"{variant} differs by {difference:.2e}; expected at most {TOLERANCE:.0e}"
        scores = [(e @ case.classifier.T).argmax(1) for e in (found[variant], embedding)]
        assert scores[0].equal(scores[1]), f"{variant} predicts other classes"


MASKING = bench.Case(
    "masking",
    ours,
    bench.Work("one full pass a mask, dense fp32 SAE", naive),
    bench.Work("one pass of the tower", lambda case: case.clip.embed(case.clip.residual(case.pixels))),
    check,
)


@pytest.fixture(scope="module")
def case() -> Case:
    return build_case(images=1)


@pytest.mark.parametrize("side", [ours, naive])
def test_sweep(benchmark: BenchmarkFixture, case: Case, side: Callable[[Case], object]) -> None:
    benchmark.group = "masking sweep"
    benchmark.pedantic(side, (case,), rounds=1)

"""Extraction (tower, encode, statistics) against the same with dense latents, written leanly in PyTorch.

`python -m benches` measures it beside the rest; under pytest-benchmark the two are timed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import patchsae_kernels as pk
from benches.vit import CLASSES, Case, build_case
from patchsae.bench import case as bench
from patchsae.experiments.stream.accumulators import LatentStatistics, image_means
from patchsae.models.clip import SplitCLIP

THRESHOLD = 0.2


class Found(NamedTuple):
    """What is kept of a batch; all [S], but class_counts [C, S] and means [B, S] (sparse in ours)."""

    sums: Tensor
    counts: Tensor
    image_counts: Tensor
    maxima: Tensor
    class_counts: Tensor
    means: Tensor | pk.SparseLatents


@torch.no_grad()
def ours(case: Case) -> Found:
    return _ours(case, case.clip)


@torch.no_grad()
def _ours(case: Case, clip: SplitCLIP) -> Found:
    latents = case.sae.encode(clip.residual(case.pixels).float())
    statistics = LatentStatistics(case.sae.config.d_sae, clip.image_tokens, THRESHOLD, CLASSES)
    statistics.update(latents, case.labels)
    s = statistics.stats
    assert s.class_counts is not None
    means = image_means(latents, clip.image_tokens)
    return Found(s.sums, s.counts, s.image_counts, s.max_values, s.class_counts, means)


@torch.no_grad()
def dense(case: Case) -> Found:
    residual = case.clip.residual(case.pixels)
    images, tokens, _ = residual.shape
    h = torch.addmm(case.sae.b_enc, residual.flatten(0, 1) - case.sae.b_dec, case.sae.W_enc).relu_()
    h = h.view(images, tokens, -1)
    counts = (h > THRESHOLD).sum(1)  # [B, S]
    sums = h.sum(1)
    maxima = h.amax(1)
    classes = counts.new_zeros(CLASSES, h.shape[2]).index_add_(0, case.labels, counts)
    return Found(sums.sum(0), counts.sum(0), (maxima > 0).sum(0), maxima.amax(0), classes, sums / tokens)


def check(case: Case, found: Found, expected: Found) -> None:
    """Counts may differ by an activation that rounds to the other side of the threshold."""
    assert isinstance(found.means, pk.SparseLatents)
    for name in ("sums", "maxima"):
        torch.testing.assert_close(getattr(found, name).float(), getattr(expected, name), rtol=1e-4, atol=1e-4)
    for name in ("counts", "image_counts", "class_counts"):
        a, b = getattr(found, name), getattr(expected, name)
        assert int((a - b).abs().sum()) <= 1e-4 * int(b.sum()) + 1, f"{name} differ"
    torch.testing.assert_close(found.means.to_dense(), expected.means, rtol=1e-4, atol=1e-4)


def _check_halved(case: Case, found: Found, expected: Found) -> None:
    """The tower rounds to bfloat16, so only the whole is compared: activity within a few per cent."""
    a, b = float(found.sums.sum()), float(expected.sums.sum())
    assert abs(a - b) <= 0.05 * b, f"activations sum to {a:.4g}; expected about {b:.4g}"


_TOWER = bench.Work("the tower alone", lambda case: case.clip.residual(case.pixels))
_TOWER_BF16 = bench.Work("the tower alone, bf16", lambda case: case.halved.residual(case.pixels))

EXTRACTION = bench.Case("extraction", ours, bench.Work("tower + dense SAE, fp32", dense), _TOWER, check)
EXTRACTION_BF16 = bench.Case(
    "extraction, bf16 tower",
    lambda case: _ours(case, case.halved),
    bench.Work("fp32 tower + dense SAE, fp32", dense),
    _TOWER_BF16,
    _check_halved,
)


@pytest.fixture(scope="module")
def case() -> Case:
    return build_case(images=1)


@pytest.mark.parametrize("side", [ours, dense])
def test_extraction(benchmark: BenchmarkFixture, case: Case, side: Callable[[Case], object]) -> None:
    benchmark.group = "extraction"
    benchmark.pedantic(side, (case,), rounds=1)

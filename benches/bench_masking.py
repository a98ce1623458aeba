"""The masking sweep at the paper's size against one full forward pass per mask with dense latents.

`python -m benches.bench_masking` checks that both agree, times them in turn in one process and prints the ratio; under
pytest-benchmark the two are timed one after the other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benches.naive_masking import naive_sweep
from patchsae.clip import SplitCLIP, load_clip
from patchsae.experiments.config import KS
from patchsae.experiments.rankings import random_rank
from patchsae.experiments.sweep import sweep_embeddings, sweep_ks
from patchsae.sae import SAEConfig, SparseAutoencoder

LATENTS = 49_152
CLASSES = 10
ACTIVE = 149  # per token; 148.6 is what the paper reports after training
TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Case:
    """A ViT-B/16 with random weights, an autoencoder of its last-but-one block, images and rankings."""

    clip: SplitCLIP
    sae: SparseAutoencoder
    pixels: Tensor
    labels: Tensor
    rankings: dict[str, Tensor]
    ks: tuple[int, ...]


def build_case(images: int, latents: int = LATENTS, active: int = ACTIVE) -> Case:
    """The case of this benchmark and of the tests; ``active`` latents per token on average."""
    generator = torch.Generator().manual_seed(0)
    clip = load_clip("ViT-B-16-quickgelu", device="cpu")
    sae = SparseAutoencoder(SAEConfig(clip.width, latents), generator)
    pixels = torch.randn(images, 3, 224, 224, generator=generator)
    _make_sparse(sae, clip.residual(pixels[:1]), active)
    ranks = torch.stack([random_rank(latents, seed) for seed in range(CLASSES)])
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    return Case(clip, sae, pixels, labels, {"class": ranks}, sweep_ks(KS, latents))


@torch.no_grad()
def _make_sparse(sae: SparseAutoencoder, residual: Tensor, active: int) -> None:
    """Centre the pre-activations of an image's tokens and set one bias that leaves ``active`` latents per token."""
    tokens = residual.reshape(-1, residual.shape[-1])
    sae.b_dec.copy_(tokens.mean(0))
    pre = (tokens - sae.b_dec) @ sae.W_enc
    rank = pre.numel() - active * len(tokens)
    sae.b_enc.fill_(-float(pre.flatten().kthvalue(rank).values))


def ours(case: Case) -> dict[tuple[str, str, int], Tensor]:
    swept = sweep_embeddings(case.clip, case.sae, case.pixels, case.labels, case.rankings, case.ks)
    return {tuple(variant): embedding for variant, embedding in swept.items()}


def naive(case: Case) -> dict[tuple[str, str, int], Tensor]:
    parameters = case.sae.state_dict()
    return naive_sweep(case.clip.model, case.clip.layer, parameters, case.pixels, case.labels, case.rankings, case.ks)


def compare(images: int, rounds: int) -> None:
    """Print agreement, both times and their ratio; the two take turns so that a busy machine slows both."""
    case = build_case(images)
    l0 = case.sae.encode(case.clip.residual(case.pixels)).l0
    found, expected = ours(case), naive(case)
    difference = max(float((found[variant] - expected[variant]).abs().max()) for variant in expected)
    if difference > TOLERANCE:
        raise SystemExit(f"the sweeps differ by {difference:.2e}; expected at most {TOLERANCE:.0e}")
    times: dict[Callable[[Case], object], list[float]] = {ours: [], naive: []}
    for _ in range(rounds):
        for run, seconds in times.items():
            start = time.perf_counter()
            run(case)
            seconds.append(time.perf_counter() - start)
    fast, slow = (statistics.median(times[run]) for run in (ours, naive))
    print(f"masking sweep, ViT-B/16 at 224 px, S = {LATENTS}, L0 = {l0:.1f}, {images} images, ks {case.ks}")
    print(f"{torch.get_num_threads()} threads, {rounds} rounds, largest difference of an embedding {difference:.1e}")
    print(f"naive {slow:8.2f} s   patchsae {fast:8.2f} s   ratio {slow / fast:.1f}")


@pytest.fixture(scope="module")
def case() -> Case:
    return build_case(images=1)


@pytest.mark.parametrize("side", [ours, naive])
def test_sweep(benchmark: BenchmarkFixture, case: Case, side: Callable[[Case], object]) -> None:
    benchmark.group = "masking sweep"
    benchmark.pedantic(side, (case,), rounds=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    compare(arguments.images, arguments.rounds)

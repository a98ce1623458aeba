"""Accumulators: any cutting into batches and any order of merging equal one pass and a dense computation."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.stream.accumulators import LatentStatistics, TopImages, TopPatches, image_means

S, T, C, N_TOP, TAU = 7, 3, 4, 3, 0.2
Collected = tuple[LatentStatistics, TopImages, TopPatches]


def dense_latents(images: int, seed: int) -> Tensor:
    """[images, T, S] with ties, gaps, values at the threshold and latent S - 1 silent."""
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor([0.0, 0.0, 0.0, 0.125, TAU, 0.5, 1.0, 1.0])
    values = choices[torch.randint(0, len(choices), (images, T, S), generator=generator)]
    values[..., S - 1] = 0
    return values


def fresh() -> Collected:
    return LatentStatistics(S, T, TAU, C), TopImages(S, N_TOP), TopPatches(S, N_TOP, T)


def feed(collected: Collected, dense: Tensor, labels: Tensor, index: Tensor) -> None:
    statistics, top_images, top_patches = collected
    latents = pk.SparseLatents.from_dense(dense.reshape(-1, S))
    statistics.update(latents, labels)
    top_images.update(image_means(latents, T), index)
    top_patches.update(latents, index)


def restored(collected: Collected) -> Collected:
    copy = fresh()
    new: Any
    old: Any
    for new, old in zip(copy, collected, strict=True):
        new.load_state_dict({name: value.clone() for name, value in old.state_dict().items()})
    return copy


def best(scores: Tensor) -> tuple[list[float], list[int]]:
    """The N_TOP largest positive entries of [M], ties to the lower position, padded with 0 and -1."""
    order = sorted((i for i in range(len(scores)) if scores[i] > 0), key=lambda i: (-scores[i].item(), i))[:N_TOP]
    pad = N_TOP - len(order)
    return [scores[i].item() for i in order] + [0.0] * pad, order + [-1] * pad


def check(collected: Collected, dense: Tensor, labels: Tensor, exact_sums: bool) -> None:
    stats, images, patches = (part.finalize() for part in collected)
    flat = dense.reshape(-1, S)
    sums = flat.double().sum(0)
    assert torch.allclose(stats.sums, sums, rtol=0, atol=0 if exact_sums else 1e-12)
    assert torch.equal(stats.counts, (flat > TAU).sum(0))
    assert torch.equal(stats.image_counts, (dense > 0).any(1).sum(0))
    by_class = torch.stack([(dense[labels == c] > TAU).sum((0, 1)) for c in range(C)])
    assert torch.equal(stats.class_counts, by_class)
    assert stats.images == len(dense)
    means = (dense.double().sum(1)).float() / T
    for s in range(S):
        values, positions = best(means[:, s])
        assert (images.values[s].tolist(), images.images[s].tolist()) == (values, positions)
        values, positions = best(flat[:, s])
        assert patches.values[s].tolist() == values
        assert patches.images[s].tolist() == [p if p < 0 else p // T for p in positions]
        assert patches.tokens[s].tolist() == [p if p < 0 else p % T for p in positions]


@given(st.integers(0, 9), st.integers(0, 2**16), st.lists(st.integers(0, 9), max_size=4), st.booleans())
def test_batches_and_resumes_change_nothing(images, seed, cuts, resume) -> None:
    dense = dense_latents(images, seed)
    labels = torch.randint(-1, C, (images,), generator=torch.Generator().manual_seed(seed))
    collected = fresh()
    bounds = [0, *sorted(min(cut, images) for cut in cuts), images]
    for start, stop in itertools.pairwise(bounds):
        feed(collected, dense[start:stop], labels[start:stop], torch.arange(start, stop))
        if resume:
            collected = restored(collected)
    check(collected, dense, labels, exact_sums=True)


@given(st.integers(1, 9), st.integers(0, 2**16), st.integers(1, 5))
def test_merging_in_any_order_equals_one_pass(images, seed, parts) -> None:
    dense = dense_latents(images, seed)
    labels = torch.randint(0, C, (images,), generator=torch.Generator().manual_seed(seed))
    owner = torch.randint(0, parts, (images,), generator=torch.Generator().manual_seed(seed + 1))
    pieces = []
    for part in range(parts):
        mine = (owner == part).nonzero().squeeze(1)
        pieces.append(fresh())
        feed(pieces[-1], dense[mine], labels[mine], mine)
    shuffle = random.Random(seed)
    while len(pieces) > 1:
        shuffle.shuffle(pieces)
        absorbed = pieces.pop()
        into: Any
        for into, other in zip(pieces[shuffle.randrange(len(pieces))], absorbed, strict=True):
            into.merge(other)
    check(pieces[0], dense, labels, exact_sums=False)


def test_images_without_labels_have_no_class_counts() -> None:
    statistics = LatentStatistics(S, T, TAU)
    statistics.update(pk.SparseLatents.from_dense(dense_latents(2, 0).reshape(-1, S)), torch.tensor([-1, -1]))
    assert statistics.finalize().class_counts is None


def test_a_batch_that_cuts_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens"):
        feed(fresh(), torch.ones(1, T + 1, S), torch.tensor([0]), torch.tensor([0]))

"""The contrastive loss: both cross-entropies, its floor where images share a caption, whole batches only."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.experiments.evaluate.contrastive import ContrastiveSums, contrastive_loss, lowest_contrastive_loss
from patchsae.experiments.mask.embeddings import RECONSTRUCTION, UNMODIFIED


def vectors(n: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_it_is_the_mean_of_both_cross_entropies() -> None:
    images, texts = vectors(4), vectors(4, seed=1)
    total = 0.0
    for i in range(4):
        for row in ((images[i] @ texts.T), (texts[i] @ images.T)):
            odds = [math.exp(10 * float(cosine)) for cosine in row]
            total -= math.log(odds[i] / sum(odds)) / 8
    assert float(contrastive_loss(images, texts, 10.0)) == pytest.approx(total, rel=1e-5)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 5), st.sampled_from([1.0, 30.0]))
def test_nothing_gets_below_the_floor_and_a_perfect_embedding_reaches_it(
    labels: list[int], seed: int, scale: float
) -> None:
    label = torch.tensor(labels)
    captions = torch.eye(6)[:4]
    floor = lowest_contrastive_loss(label)
    noisy = normalize(captions[label] + 0.5 * vectors(len(labels), seed), dim=1)
    assert float(contrastive_loss(noisy, captions[label], scale)) >= floor - 1e-9
    assert float(contrastive_loss(captions[label], captions[label], 100.0)) == pytest.approx(floor, abs=1e-9)


def test_only_whole_batches_count_and_merging_adds() -> None:
    captions, labels = vectors(3), torch.tensor([0, 1, 2, 0])
    batches = [{UNMODIFIED: vectors(4, seed=s), RECONSTRUCTION: vectors(4, seed=s + 10)} for s in range(3)]

    def counted(*numbers: int) -> ContrastiveSums:
        sums = ContrastiveSums((UNMODIFIED, RECONSTRUCTION), captions, 7.0, batch_size=4)
        for number in numbers:
            sums.update(batches[number], labels)
        return sums

    whole = counted(0, 1, 2)
    whole.update({masking: embedding[:3] for masking, embedding in batches[0].items()}, labels[:3])
    found = whole.finalize()
    assert found is not None
    assert found.batches == 3
    for masking in (UNMODIFIED, RECONSTRUCTION):
        expected = sum(float(contrastive_loss(batch[masking], captions[labels], 7.0)) for batch in batches) / 3
        assert found.losses[masking] == pytest.approx(expected, rel=1e-12)
    assert found.lowest == pytest.approx(math.log(2) / 2)
    merged = counted(2)
    merged.merge(counted(0, 1))
    assert merged.finalize() is not None
    assert merged.finalize().losses == pytest.approx(found.losses, rel=1e-12)
    assert counted().finalize() is None

"""Average precision: the area under the precision-recall steps, as counted by hand, for sparse columns with ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.evaluate.average_precision import average_precision


def by_hand(scores: np.ndarray, positive: np.ndarray) -> float:
    """Go down the distinct scores; at each take in all images that have it, and look at precision and recall."""
    area = recall = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        right = (positive & chosen).sum()
        area += (right / positive.sum() - recall) * (right / chosen.sum())
        recall = right / positive.sum()
    return area


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores [n, 5] with many ties and zeros, and positives [n, 3]."""
    n = draw(st.integers(1, 14))
    scores = draw(
        st.lists(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=5, max_size=5), min_size=n, max_size=n)
    )
    positives = draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=n, max_size=n))
    return torch.tensor(scores).float(), torch.tensor(positives)


@given(cases(), st.sampled_from([1e-9, 64.0]))
def test_it_is_the_area_counted_by_hand(case: tuple[Tensor, Tensor], budget_mb: float) -> None:
    scores, positives = case
    found = average_precision(pk.SparseLatents.from_dense(scores), positives, budget_mb).numpy()
    for v in range(3):
        positive = positives[:, v].numpy()
        for s in range(5):
            if positive.any():
                assert found[s, v] == pytest.approx(by_hand(scores[:, s].numpy(), positive), abs=1e-12)
            else:
                assert np.isnan(found[s, v])


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(case: tuple[Tensor, Tensor], random) -> None:
    scores, positives = case
    order = list(range(len(scores)))
    random.shuffle(order)
    found, again = (
        average_precision(pk.SparseLatents.from_dense(scores[o]), positives[o]) for o in (slice(None), order)
    )
    assert found.numpy().tobytes() == again.numpy().tobytes()


def test_a_latent_that_never_fired_is_a_coin_and_a_perfect_one_has_1() -> None:
    positives = torch.tensor([[True], [False], [False], [True]])
    scores = torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert average_precision(pk.SparseLatents.from_dense(scores), positives).squeeze(1).tolist() == [0.5, 1.0]


def test_positives_of_another_number_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positives has shape \(3, 2\); expected \[n, V\] with n = 4"):
        average_precision(pk.SparseLatents.from_dense(torch.ones(4, 5)), torch.ones(3, 2, dtype=torch.bool))

"""Dead counters against the history of what fired."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchsae.training.dead import DeadCounter

HISTORIES = st.tuples(st.integers(0, 12), st.integers(1, 5)).flatmap(lambda shape: arrays(np.bool_, shape))


@given(history=HISTORIES, window=st.integers(0, 6))
def test_a_latent_is_dead_when_its_last_firing_is_more_than_window_steps_ago(history: np.ndarray, window: int) -> None:
    counter = DeadCounter(history.shape[1], window)
    for fired in history:
        counter.update(torch.from_numpy(fired))
    for latent, fired in enumerate(history.T):
        steps_ago = int(np.argmax(fired[::-1])) if fired.any() else len(fired)
        assert counter.since_fired[latent] == steps_ago
        assert bool(counter.mask()[latent]) == (steps_ago > window)


def test_nothing_is_dead_before_window_plus_one_steps() -> None:
    counter = DeadCounter(3, window=64)
    for _ in range(64):
        counter.update(torch.zeros(3, dtype=torch.bool))
        assert not counter.mask().any()
    counter.update(torch.tensor([False, True, False]))
    assert counter.mask().tolist() == [True, False, True]


def test_reset_latents_count_as_if_they_had_just_fired() -> None:
    counter = DeadCounter(3, window=1)
    for _ in range(3):
        counter.update(torch.zeros(3, dtype=torch.bool))
    counter.reset(torch.tensor([False, True, False]))
    assert counter.since_fired.tolist() == [3, 0, 3]


@pytest.mark.parametrize("fired", [torch.zeros(2, dtype=torch.bool), torch.zeros(3)])
def test_wrong_fired_is_refused(fired: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="fired has shape"):
        DeadCounter(3, window=1).update(fired)

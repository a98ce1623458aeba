"""High and low latents of a class against loops over sorted lists, and what must hold whatever the counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.experiments.compare.transitions import NORMALISATIONS, TRANSITIONS, transitions

S = 8
counts = st.lists(st.lists(st.integers(0, 4), min_size=S, max_size=S), min_size=1, max_size=3)
cuts = st.tuples(st.integers(1, S + 2), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair)))


def places(row: list[int], high: int, low: int) -> tuple[set[int], set[int]]:
    """The high and the low latents of a class."""
    order = [s for s in sorted(range(S), key=lambda s: (-row[s], s)) if row[s] > 0]
    return set(order[:high]), set(range(S)) - set(order[:low])


@given(counts, st.randoms(use_true_random=False), cuts)
def test_agree_with_loops(before, random, cut) -> None:
    after = [random.sample(row, S) for row in before]
    found = transitions(torch.tensor(before), torch.tensor(after), *cut)
    for label, (a, b) in enumerate(zip(before, after, strict=True)):
        (high_a, low_a), (high_b, low_b) = places(a, *cut), places(b, *cut)
        kinds = [len(high_a & high_b), len(high_a & low_b), len(low_a & high_b)]
        assert found.counts[label].tolist() == kinds
        fires_a, fires_b = ({s for s in range(S) if side[s]} for side in (a, b))
        wholes = {
            "high": cut[0],
            "high_a": len(high_a),
            "high_b": len(high_b),
            "high_either": len(high_a | high_b),
            "active_a": len(fires_a),
            "active_b": len(fires_b),
            "active_either": len(fires_a | fires_b),
            "all": S,
        }
        assert wholes.keys() == NORMALISATIONS.keys()
        for name, whole in wholes.items():
            assert found.denominators[name][label] == whole
            expected = [kind / whole if whole else 0.0 for kind in kinds]
            assert found.shares(name)[label].tolist() == pytest.approx(expected)


@given(counts, st.randoms(use_true_random=False), cuts)
def test_going_back_swaps_the_losses_for_the_gains(before, random, cut) -> None:
    after = [random.sample(row, S) for row in before]
    there, back = (
        transitions(torch.tensor(a), torch.tensor(b), *cut).counts for a, b in ((before, after), (after, before))
    )
    assert torch.equal(there, back[:, [0, 2, 1]])


@given(counts, cuts)
def test_nothing_moves_between_equal_sides(same, cut) -> None:
    found = transitions(torch.tensor(same), torch.tensor(same), *cut)
    assert torch.equal(found.counts[:, 0], found.denominators["high_a"])
    assert found.counts[:, 1:].sum() == 0


def test_between_high_and_low_is_neither() -> None:
    before, after = torch.tensor([[5, 4, 3, 0]]), torch.tensor([[3, 5, 4, 0]])
    assert transitions(before, after, 1, 2).counts.tolist() == [[0, 1, 0]]
    assert transitions(before, after, 1, 3).counts.tolist() == [[0, 0, 0]]


def test_means_are_over_the_asked_classes() -> None:
    before = torch.tensor([[3, 2, 0, 0], [3, 2, 0, 0], [1, 1, 1, 1]])
    after = torch.tensor([[3, 2, 0, 0], [0, 0, 2, 3], [1, 1, 1, 1]])
    found = transitions(before, after, 2, 2)
    assert dict(zip(TRANSITIONS, found.mean_counts([0, 1]), strict=True)) == {
        "high/high": 1.0,
        "high->low": 1.0,
        "low->high": 1.0,
    }
    assert found.mean_shares("active_either", [0, 1]) == [0.5, 0.25, 0.25]

"""Overlap and shift of two sets of activations against loops over dense rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae.experiments.accuracies import improvement
from patchsae.experiments.compare.pair_table import PairTable, listed, overlap, shift, top_latents

S = 6
rows = st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.5]), min_size=S, max_size=S), min_size=1, max_size=4)


def sparse(dense: list[list[float]]) -> pk.SparseLatents:
    return pk.SparseLatents.from_dense(torch.tensor(dense))


@given(rows, st.randoms(use_true_random=False))
def test_agree_with_loops(first, random) -> None:
    second = [random.sample(row, S) for row in first]
    moved = shift(sparse(first), sparse(second))
    tops = [top_latents(sparse(side), 3) for side in (first, second)]
    common = overlap(*tops)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        total = sum(a) + sum(b)
        change = sum(abs(x - y) for x, y in zip(a, b, strict=True))
        assert moved[i].item() == pytest.approx(change / total if total else 0.0)
        best = [sorted((s for s in range(S) if side[s] > 0), key=lambda s: (-side[s], s))[:3] for side in (a, b)]
        assert tops[0][i].tolist() == best[0] + [-1] * (3 - len(best[0]))
        assert listed(tops[0], common.shared)[i] == " ".join(str(s) for s in best[0] if s in best[1])
        assert listed(tops[0], common.only_first)[i] == " ".join(str(s) for s in best[0] if s not in best[1])
        assert listed(tops[1], common.only_second)[i] == " ".join(str(s) for s in best[1] if s not in best[0])


@given(rows)
def test_a_side_has_not_moved_from_itself_and_wholly_from_nothing(dense) -> None:
    some, nothing = sparse(dense), sparse([[0.0] * S for _ in dense])
    assert shift(some, some).tolist() == [0.0] * len(dense)
    assert shift(some, nothing).tolist() == [1.0 if any(row) else 0.0 for row in dense]


def test_the_table_orders_pairs_whatever_the_order_they_came_in() -> None:
    forward, backward = PairTable(2), PairTable(2)
    for table, order in ((forward, [0, 1, 2]), (backward, [2, 0, 1])):
        for i in order:
            means = (sparse([[float(i)] + [0.0] * (S - 1)]), sparse([[1.0] * S]))
            one = torch.tensor([i])
            table.update(means, (one, one + 5), one, (one > 0, one > 1))
    merged = PairTable(2)
    merged.load_state_dict(backward.state_dict())
    for ours, theirs in zip(forward.finalize(), merged.finalize(), strict=True):
        assert torch.equal(ours, theirs)
    assert forward.finalize().positions.tolist() == [[0, 5], [1, 6], [2, 7]]


def test_improvement_is_the_share_of_the_errors_that_went() -> None:
    assert improvement(0.5, 0.75) == 0.5
    assert improvement(0.5, 0.25) == -0.5
    assert improvement(1.0, 1.0) is None

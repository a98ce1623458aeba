"""TopTable: the n largest pairs of every row, whatever the cutting, the order of merging and the ties."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patchsae.experiments.stream.top_table import TopTable

ROWS = 4
Pair = tuple[int, float, int]
# few distinct values, so that ties are common; unique (row, position) as insert() demands
pairs = st.lists(
    st.tuples(
        st.integers(0, ROWS - 1),
        st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.5000001, 3.0, 1e-30]),
        st.integers(0, 2**32 - 1) | st.integers(0, 20),
    ),
    max_size=60,
    unique_by=lambda pair: (pair[0], pair[2]),
)


def insert(table: TopTable, some: list[Pair]) -> None:
    rows, values, positions = (list(column) for column in zip(*some, strict=True)) if some else ([], [], [])
    table.insert(
        torch.tensor(rows, dtype=torch.int32), torch.tensor(values), torch.tensor(positions, dtype=torch.int64)
    )


def naive(some: list[Pair], n: int) -> tuple[Tensor, Tensor]:
    values, positions = torch.zeros(ROWS, n), torch.full((ROWS, n), -1)
    for row in range(ROWS):
        best = sorted((-torch.tensor(v).item(), p) for r, v, p in some if r == row and v > 0)[:n]
        for slot, (negative, position) in enumerate(best):
            values[row, slot], positions[row, slot] = -negative, position
    return values, positions


@given(pairs, st.integers(1, 5), st.lists(st.integers(0, 60), max_size=4), st.randoms(use_true_random=False))
def test_any_cutting_and_any_order_of_merging_give_the_naive_answer(some, n, cuts, random) -> None:
    bounds = [0, *sorted(min(cut, len(some)) for cut in cuts), len(some)]
    parts = []
    for start, stop in itertools.pairwise(bounds):
        table = TopTable(ROWS, n)
        insert(table, some[start:stop])
        parts.append(table)
    random.shuffle(parts)
    while len(parts) > 1:
        left, right = parts.pop(), parts.pop(random.randrange(len(parts)))
        left.merge(right)
        parts.insert(random.randrange(len(parts) + 1), left)
    values, positions = naive(some, n)
    assert torch.equal(parts[0].values(), values)
    assert torch.equal(parts[0].positions(), positions)


@given(pairs, st.integers(1, 3), st.integers(1, 7))
def test_one_table_fed_in_small_chunks_gives_the_naive_answer(some, n, chunk) -> None:
    table = TopTable(ROWS, n, chunk=chunk)
    insert(table, some)
    assert torch.equal(table.values(), naive(some, n)[0])
    assert torch.equal(table.positions(), naive(some, n)[1])


def test_a_position_beyond_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="4294967296"):
        insert(TopTable(ROWS, 2), [(0, 1.0, 2**32)])


def test_tables_of_different_size_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        TopTable(ROWS, 2).merge(TopTable(ROWS, 3))


def test_no_entry_per_row_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        TopTable(ROWS, 0)

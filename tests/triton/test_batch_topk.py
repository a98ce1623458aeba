"""batch_topk in the interpreter against the reference, which keeps the same bits in the same places."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae_kernels.latents import SparseLatents
from patchsae_kernels.reference.batch_topk import batch_topk
from patchsae_kernels.triton import batch_topk as kernels
from tests.examples import examples
from tests.kernels.cases import random_latents


def assert_selection(found, expected):
    """Equal rows, latents and values; what lies behind the last row is not looked at."""
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert torch.equal(found[2], expected[2])
    end = int(expected[2][-1])
    assert torch.equal(found[1][:end], expected[1][:end])
    assert torch.equal(found[0][:end], expected[0][:end])


@st.composite
def selections(draw):
    n, s = draw(st.integers(0, 8)), draw(st.sampled_from([1, 7, 64, 300]))
    z = random_latents(draw(st.integers(0, 2**31)), n, s, draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    levels = draw(st.sampled_from([None, 1, 4]))
    values = z.values if levels is None else (z.values * levels).ceil() / levels
    values = values * draw(st.sampled_from([1.0, 1e-38, 1e30]))
    values = values.bfloat16() if draw(st.booleans()) else values
    total = draw(st.one_of(st.integers(0, 20), st.integers(0, z.nnz + 3)))
    return values, z.indices, z.indptr, total


@examples(15)
@given(selections())
def test_the_largest_entries_of_the_batch(selection):
    values, indices, indptr, total = selection
    # 1e-38 times a small value is subnormal or 0 in bfloat16, and the interpreter widens such numbers wrongly
    stored = values >= (torch.finfo(torch.bfloat16).tiny if values.dtype == torch.bfloat16 else 1e-45)
    before = torch.cat([torch.zeros(1, dtype=torch.int64), stored.cumsum(0)])
    z = values[stored], indices[stored], before[indptr]
    assert_selection(kernels.batch_topk(*z, total), batch_topk(*z, total))


@examples(15)
@given(selections(), st.integers(1, 9))
def test_entries_behind_the_last_row_are_ignored(selection, padding):
    values, indices, indptr, total = selection
    values = values.clamp(min=torch.finfo(values.dtype).tiny)
    largest = torch.full((padding,), float("inf"), dtype=values.dtype)
    z = torch.cat([values, largest]), torch.cat([indices, torch.full((padding,), -1).int()]), indptr
    found = kernels.batch_topk(*z, total)
    assert_selection(found, batch_topk(*z, total))
    assert int(found[2][-1]) == min(total, values.shape[0])


@pytest.mark.parametrize("bit", range(0, 31, 3))
def test_values_that_differ_in_one_bit(bit):
    """Every digit of the select decides somewhere."""
    base = torch.tensor([0x3F400001 ^ (1 << bit), 0x3F400001], dtype=torch.int32)
    values = base.view(torch.float32)[torch.tensor([0, 1, 0, 1, 1])]
    assert bool((torch.isfinite(values) & (values > 0)).all())
    z = values, torch.tensor([0, 3, 1, 2, 5]).int(), torch.tensor([0, 2, 2, 5])
    for total in range(7):
        assert_selection(kernels.batch_topk(*z, total), batch_topk(*z, total))


@pytest.mark.slow
def test_more_entries_than_one_program_counts_and_rows_longer_than_a_block():
    g = torch.Generator().manual_seed(0)
    dense = torch.rand(4, kernels.HISTOGRAM_BLOCK * kernels.HISTOGRAM_BLOCKS // 2, generator=g)
    dense[1] = 0
    dense[2] = dense[2].mul(50).ceil().div(50)
    z = SparseLatents.from_dense(dense)
    for total in (1, 1000, z.nnz - 1):
        found = kernels.batch_topk(z.values, z.indices, z.indptr, total)
        assert_selection(found, batch_topk(z.values, z.indices, z.indptr, total))
        again = kernels.batch_topk(z.values, z.indices, z.indptr, total)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))

"""BatchTopK: the definition against a dense sort, and selection over a batch from the largest latents of each row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae_kernels.latents import SparseLatents, indptr_from_counts
from patchsae_kernels.reference.batch_topk import CANDIDATES, batch_topk, select_over_batch


def keep_largest(dense, total):
    """The dense matrix with all but its ``total`` largest positive entries zeroed, one entry after another."""
    flat = dense.flatten().tolist()
    order = sorted((i for i, v in enumerate(flat) if v > 0), key=lambda i: (-flat[i], i))
    kept = torch.zeros_like(dense)
    for i in order[:total]:
        kept.view(-1)[i] = flat[i]
    return kept


@st.composite
def batches(draw, min_n=0):
    n, s = draw(st.integers(min_n, 12)), draw(st.integers(1, 30))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dense = torch.randn(n, s, generator=g, dtype=draw(st.sampled_from([torch.float32, torch.float64])))
    if draw(st.booleans()):
        dense = (dense * 2).round() / 2  # ties
    scale = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 100.0]), min_size=n, max_size=n)))
    return dense * scale.to(dense.dtype)[:, None]


def row_encoder(dense, asked=None):
    """``encode_rows`` of `select_over_batch` for known pre-activations."""

    def encode_rows(m):
        if asked is not None:
            asked.append(m)
        order = torch.sort(dense, dim=1, descending=True, stable=True).indices[:, :m]
        keep = torch.zeros_like(dense, dtype=torch.bool).scatter_(1, order, True) & (dense > 0)
        rows, columns = keep.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=dense.shape[0])
        return dense[rows, columns], columns.int(), indptr_from_counts(counts)

    return encode_rows


def to_dense(csr, shape):
    return SparseLatents(*csr, tuple(shape)).validate().to_dense()


@given(batches(), st.integers(0, 400))
def test_the_reference_keeps_the_largest_entries(dense, total):
    z = SparseLatents.from_dense(dense.clamp(min=0))
    found = batch_topk(z.values, z.indices, z.indptr, total)
    assert found[0].shape == found[1].shape == (min(total, z.nnz),)
    assert torch.equal(to_dense(found, dense.shape), keep_largest(dense, total))


@given(batches(), st.integers(0, 40), st.integers(1, 5))
def test_the_reference_ignores_entries_behind_the_last_row(dense, total, padding):
    z = SparseLatents.from_dense(dense.clamp(min=0))
    values = torch.cat([z.values, torch.full((padding,), 1e9, dtype=dense.dtype)])
    indices = torch.cat([z.indices, torch.zeros(padding, dtype=torch.int32)])
    values, indices, indptr = batch_topk(values, indices, z.indptr, total)
    end = min(total, z.nnz)
    assert int(indptr[-1]) == end
    assert values.shape == indices.shape == (min(total, z.nnz + padding),)
    assert torch.equal(to_dense((values[:end], indices[:end], indptr), dense.shape), keep_largest(dense, total))


def test_all_values_equal_keeps_the_first():
    z = SparseLatents.from_dense(torch.ones(3, 4))
    values, indices, indptr = batch_topk(z.values, z.indices, z.indptr, 6)
    assert values.tolist() == [1] * 6
    assert indices.tolist() == [0, 1, 2, 3, 0, 1]
    assert indptr.tolist() == [0, 4, 6, 6]


@given(batches(), st.integers(1, 30))
def test_selection_over_a_batch_is_the_dense_one(dense, k):
    k = min(k, dense.shape[1])
    found = select_over_batch(row_encoder(dense), dense.shape[0], k, dense.shape[1])
    assert torch.equal(to_dense(found, dense.shape), keep_largest(dense, dense.shape[0] * k))


def test_a_row_that_holds_everything_is_asked_for_more():
    dense = torch.full((16, 64), 0.5)
    dense[3] += 1 + torch.arange(64) / 64
    asked = []
    found = select_over_batch(row_encoder(dense, asked), 16, 2, 64)
    expected = keep_largest(dense, 32)
    assert torch.equal(to_dense(found, dense.shape), expected)
    assert asked == [8, 16, 32]
    naive = batch_topk(*row_encoder(dense)(CANDIDATES * 2), 32)
    assert not torch.equal(to_dense(naive, dense.shape), expected)


def test_a_tie_across_the_edge_of_a_row_is_settled_by_position():
    """The first row's missing entries equal the smallest kept one, and come before the later rows' equal ones."""
    dense = torch.ones(8, 16)
    asked = []
    found = select_over_batch(row_encoder(dense, asked), 8, 1, 16)
    assert torch.equal(to_dense(found, dense.shape), keep_largest(dense, 8))
    assert asked == [4, 8]
    naive = batch_topk(*row_encoder(dense)(CANDIDATES), 8)
    assert not torch.equal(to_dense(naive, dense.shape), keep_largest(dense, 8))


def test_one_round_where_rows_are_alike():
    asked = []
    select_over_batch(row_encoder(torch.rand(32, 200, generator=torch.Generator().manual_seed(0)), asked), 32, 8, 200)
    assert asked == [32]


def test_rows_with_fewer_positives_than_wanted():
    dense = torch.full((4, 50), -1.0)
    dense[1, :20] = 1.0
    asked = []
    found = select_over_batch(row_encoder(dense, asked), 4, 6, 50)
    assert torch.equal(to_dense(found, dense.shape), dense.clamp(min=0))
    assert asked == [24]


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=r"expected 1 <= k <= S = 5"):
        select_over_batch(row_encoder(torch.ones(2, 5)), 2, k, 5)

"""The sweep kernels against the reference, float64 and their own laws."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import reference
from patchsae_kernels.calls import DecodeCall, MaskedDecodeCall, SweepCall
from patchsae_kernels.triton import decode, sweep
from patchsae_kernels.triton.launch import record
from tests.examples import examples
from tests.kernels.cases import random_latents
from tests.triton.test_decode import assert_near, csr, dictionary, few_latents


def random_rank(s, classes, g):
    if classes is None:
        return torch.randperm(s, generator=g).int()
    return torch.stack([torch.randperm(s, generator=g) for _ in range(classes)]).int()


@st.composite
def sweeps(draw):
    z = draw(few_latents)
    n, s = z.shape
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    classes = draw(st.one_of(st.none(), st.integers(1, 3)))
    ids = None if classes is None else torch.randint(classes, (n,), generator=g)
    return z, random_rank(s, classes, g), draw(st.lists(st.integers(0, s + 2), max_size=5)), ids


@examples(30)
@given(sweeps(), st.sampled_from([1, 16, 21]))
def test_the_sweep_is_2k_masked_dense_products(case, d):
    z, rank, ks, ids = case
    W, b = dictionary(z.shape[1], d)
    on, off = sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, ks, ids))
    assert on.shape == off.shape == (len(ks), z.shape[0], d)
    for i, k in enumerate(ks):
        kept = rank < k if ids is None else (rank < k)[ids]
        dense = z.to_dense().double()
        assert_near(on[i], torch.where(kept, dense, 0) @ W.double() + b.double())
        assert_near(off[i], torch.where(kept, 0, dense) @ W.double() + b.double())
        assert_near(on[i], decode.decode_masked(MaskedDecodeCall(*csr(z), W, b, rank < k, ids)).double())


@examples(30)
@given(sweeps())
def test_the_segments_are_those_of_the_reference(case):
    z, rank, ks, ids = case
    assume(z.shape[0] > 0)
    ks = [*sorted(ks), z.shape[1] + 3]
    segments = sweep.sweep_segments(*csr(z), rank, torch.tensor(ks, dtype=torch.int32), ids)
    for ours, expected in zip(segments, reference.sweep_segments(*csr(z), rank, ks, ids), strict=True):
        assert torch.equal(ours, expected)


def test_rows_longer_than_a_step_keep_their_order_within_a_segment():
    z = random_latents(0, 3, 400, 0.7)
    rank = random_rank(400, None, torch.Generator().manual_seed(0))
    for ks in ([50, 200], list(range(0, 400, 20)), list(range(0, 400, 4))):
        cuts = torch.tensor(ks, dtype=torch.int32)
        segments = sweep.sweep_segments(*csr(z), rank, cuts, None)
        for ours, expected in zip(segments, reference.sweep_segments(*csr(z), rank, ks, None), strict=True):
            assert torch.equal(ours, expected)


def test_everything_kept_is_the_decode_and_everything_dropped_is_exactly_the_bias():
    z = random_latents(1, 6, 40, 0.5)
    W, b = dictionary(40, 20)
    rank = random_rank(40, None, torch.Generator().manual_seed(0))
    on, off = sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, [0, 40, 41, 2**40], None))
    assert torch.equal(on[0], b.expand(6, 20))
    for full in (1, 2, 3):
        assert torch.equal(off[full], b.expand(6, 20))
        assert_near(on[full], decode.decode(DecodeCall(*csr(z), W, b)).double())
    assert_near(off[0], decode.decode(DecodeCall(*csr(z), W, b)).double())


def test_the_order_of_ks_is_the_order_of_the_outputs():
    z = random_latents(2, 4, 40, 0.5)
    W, b = dictionary(40, 20)
    rank = random_rank(40, None, torch.Generator().manual_seed(0))
    shuffled, ascending = [20, 3, 20, 0, 11], [0, 3, 11, 20, 20]
    for given_, sorted_ in zip(
        sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, shuffled, None)),
        sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, ascending, None)),
        strict=True,
    ):
        assert torch.equal(given_, sorted_[[4, 1, 3, 0, 2]])


def test_more_ks_than_one_pass_takes(monkeypatch):
    z = random_latents(3, 3, 30, 0.5)
    W, b = dictionary(30, 16)
    rank = random_rank(30, None, torch.Generator().manual_seed(0))
    ks = [7, 30, 0, 12, 3]
    whole = sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, ks, None))
    monkeypatch.setattr(sweep, "MOST_KS", 2)
    for a, expected in zip(sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, ks, None)), whole, strict=True):
        assert_near(a, expected.double())


@pytest.mark.parametrize("count", [1, 15, 16, 64])
def test_one_k_and_many(count):
    z = random_latents(4, 2, 70, 0.5)
    W, b = dictionary(70, 16)
    rank = random_rank(70, None, torch.Generator().manual_seed(0))
    ks = list(range(1, count + 1))
    for ours, expected in zip(
        sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, ks, None)), pk.decode_sweep(z, rank, ks, W, b), strict=True
    ):
        assert_near(ours, expected.double())


def test_a_slice_of_the_tokens_gives_a_slice_of_the_bits_and_so_does_repetition():
    z = random_latents(5, 6, 40, 0.5)
    W, b = dictionary(40, 20)
    rank = random_rank(40, 2, torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 1, 1, 0, 1, 0])
    whole = sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, [4, 20], ids))
    first, last = z.indptr[2], z.indptr[5]
    part = z.values[first:last], z.indices[first:last], z.indptr[2:6] - first
    for a, again, expected in zip(
        sweep.decode_sweep(SweepCall(*part, W, b, rank, [4, 20], ids[2:5])),
        sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, [4, 20], ids)),
        whole,
        strict=True,
    ):
        assert torch.equal(a, expected[:, 2:5])
        assert torch.equal(again, expected)


def test_bfloat16_rows_any_strides_and_several_slices(monkeypatch):
    z = random_latents(6, 3, 30, 0.5)
    W, b = dictionary(30, 40)
    rank = random_rank(30, None, torch.Generator().manual_seed(0))
    W = W.bfloat16()
    expected = pk.decode_sweep(z, rank, [3, 20], W, b)
    monkeypatch.setattr(sweep, "decode_launch", lambda width, dtype: decode.DecodeLaunch(16))
    monkeypatch.setattr(decode, "decode_launch", lambda width, dtype: decode.DecodeLaunch(16))
    for layout in (W, W.t().contiguous().t()):
        for ours, right in zip(
            sweep.decode_sweep(SweepCall(*csr(z), layout, b, rank, [3, 20], None)), expected, strict=True
        ):
            assert_near(ours, right.double())


@pytest.mark.parametrize("classes", [0, 3])
def test_a_class_that_does_not_exist_makes_its_token_nan(classes):
    z = random_latents(2, 4, 12, 0.5)
    z = type(z).from_dense(z.to_dense() * torch.tensor([[1.0], [0.0], [1.0], [1.0]]))
    W, b = dictionary(12, 20)
    rank = torch.arange(12).int().expand(classes, 12)
    ids = torch.tensor([3, -1, 2, 2**40])
    on, off = sweep.decode_sweep(SweepCall(*csr(z), W, b, rank, [0, 5], ids))
    known = (ids >= 0) & (ids < classes)
    without_classes = sweep.decode_sweep(SweepCall(*csr(z), W, b, torch.arange(12).int(), [0, 5], None))
    for ours, right in zip((on, off), without_classes, strict=True):
        assert ours[:, ~known].isnan().all()
        assert torch.equal(ours[:, known], right[:, known])


def test_a_rank_beyond_every_k_is_always_dropped():
    z = random_latents(2, 4, 12, 0.8)
    W, b = dictionary(12, 20)
    never = torch.full((12,), 2**31 - 1, dtype=torch.int32)
    on, off = sweep.decode_sweep(SweepCall(*csr(z), W, b, never, [0, 12, 2**31], None))
    assert torch.equal(on, b.expand(3, 4, 20))
    for dropped in off:
        torch.testing.assert_close(dropped, decode.decode(DecodeCall(*csr(z), W, b)))


def test_the_host_code_touches_no_data():
    with record() as launches, torch.device("meta"):
        values, indices = torch.empty(90), torch.empty(90, dtype=torch.int32)
        indptr, W, b = torch.empty(8, dtype=torch.int64), torch.empty(50, 40), torch.empty(40)
        rank = torch.empty(50, dtype=torch.int32)
        on, off = sweep.decode_sweep(SweepCall(values, indices, indptr, W, b, rank, [3, 1], None))
    assert on.shape == off.shape == (2, 7, 40)
    assert [launch.kernel for launch in launches] == [sweep.decode_sweep_segments_kernel, sweep.decode_sweep_kernel]

"""The native decode, masked decode and sweep, at every level of this machine, against float64 and the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import cpu, reference
from patchsae_kernels.calls import DecodeCall, SweepCall
from patchsae_kernels.cpu.extension import levels, native
from patchsae_kernels.reference import checked
from tests.kernels.cases import latents, random_latents

pytestmark = pytest.mark.skipif(not cpu.available, reason=f"the extension is not here: {cpu.missing}")
WIDTHS = st.sampled_from([1, 15, 16, 17, 48, 95, 192, 208, 211, 400])
WEIGHTS = st.sampled_from([torch.float32, torch.bfloat16])


@pytest.fixture(params=levels(), autouse=True)
def level(request):
    before = native.level()
    native.set_level(request.param)
    yield request.param
    native.set_level(before)


@pytest.fixture
def with_threads():
    """Sets the number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def dictionary(s, d, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(s, d, generator=g).to(dtype), torch.randn(d, generator=g)


def csr(z):
    return z.values, z.indices, z.indptr


def product(dense, W, b):
    """float64, and what float32 may be off by: the terms it sums, in units of their rounding."""
    exact = dense.double() @ W.double() + b.double()
    terms = dense.double().abs() @ W.double().abs() + b.double().abs()
    return exact, (dense.shape[1] + 3) * 2.0**-23 * terms + 1e-30


def assert_product(y, dense, W, b):
    exact, bound = product(dense, W, b)
    assert y.dtype == torch.float32
    assert ((y.double() - exact).abs() <= bound).all()


@st.composite
def sweeps(draw):
    z = draw(latents)
    n, s = z.shape
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    classes = draw(st.one_of(st.none(), st.integers(1, 3)))
    rank = torch.stack([torch.randperm(s, generator=g) for _ in range(classes or 1)]).int()
    ids = None if classes is None else torch.randint(classes, (n,), generator=g)
    ks = draw(st.lists(st.integers(0, s + 2), max_size=20))
    return z, rank[0] if ids is None else rank, ids, ks


@given(latents, WIDTHS, WEIGHTS, st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([1e-30, 1.0, 1e30]))
def test_decode_is_the_product(z, d, weight, value, scale):
    z = z.with_values((z.values * scale).to(value))
    W, b = dictionary(z.shape[1], d, weight)
    assert_product(pk.decode(z, W, b), z.to_dense(), W, b)


@given(sweeps(), WIDTHS, WEIGHTS)
def test_masked_decode_is_the_decode_of_the_entries_kept(sweep, d, weight):
    z, rank, ids, ks = sweep
    W, b = dictionary(z.shape[1], d, weight)
    for k in ks[:2]:
        keep = rank < k
        kept = reference.filter_entries(*csr(z), reference.per_entry(keep, z.indices, z.indptr, ids))
        assert torch.equal(pk.decode_masked(z, keep, W, b, ids), native_decode(kept, z.shape, W, b))


def native_decode(entries, shape, W, b):
    return pk.decode(pk.SparseLatents(*entries, shape), W, b)


def test_rows_that_are_dropped_are_not_touched():
    z = random_latents(0, 7, 30, 0.5)
    W, b = dictionary(30, 20)
    keep = torch.arange(30) % 3 == 0
    poisoned = torch.where(keep[:, None], W, torch.nan)
    assert torch.equal(pk.decode_masked(z, keep, poisoned, b), pk.decode_masked(z, keep, W, b))


@given(sweeps(), WIDTHS, WEIGHTS)
def test_sweep_is_2k_masked_products(sweep, d, weight):
    z, rank, ids, ks = sweep
    W, b = dictionary(z.shape[1], d, weight)
    on, off = pk.decode_sweep(z, rank, ks, W, b, ids)
    assert on.shape == off.shape == (len(ks), z.shape[0], d)
    ranks = rank.expand(z.shape) if ids is None else rank[ids]
    for i, k in enumerate(ks):
        assert_product(on[i], torch.where(ranks < k, z.to_dense(), 0), W, b)
        assert_product(off[i], torch.where(ranks < k, 0, z.to_dense()), W, b)
        if k == 0:
            assert torch.equal(on[i], b.expand_as(on[i]))
        if k >= z.shape[1]:
            assert torch.equal(off[i], b.expand_as(off[i]))


@given(sweeps())
def test_sweep_takes_ks_in_any_order(sweep):
    z, rank, ids, ks = sweep
    W, b = dictionary(z.shape[1], 20)
    ascending = sorted(set(ks))
    on, off = pk.decode_sweep(z, rank, ascending, W, b, ids)
    place = [ascending.index(k) for k in ks]
    mixed_on, mixed_off = pk.decode_sweep(z, rank, ks, W, b, ids)
    torch.testing.assert_close(mixed_on, on[place], rtol=0, atol=0)
    torch.testing.assert_close(mixed_off, off[place], rtol=0, atol=0)


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_no_bit_depends_on_threads_or_on_the_other_rows(weight, with_threads):
    z = random_latents(1, 120, 300, 0.3)
    W, b = dictionary(300, 411, weight)
    rank = torch.randperm(300, generator=torch.Generator().manual_seed(0)).int()

    def everything(z):
        return [pk.decode(z, W, b), pk.decode_masked(z, rank < 99, W, b), *pk.decode_sweep(z, rank, [9, 3, 200], W, b)]

    with_threads(1)
    alone = everything(z)
    for threads in (2, 3, 4):
        with_threads(threads)
        for a, b_ in zip(everything(z), alone, strict=True):
            assert torch.equal(a, b_)
    for a, b_ in zip(everything(z.select_rows(torch.arange(50, 61))), alone, strict=True):
        assert torch.equal(a, b_[..., 50:61, :])


@pytest.mark.slow
def test_large_sweep_outputs_are_whole():
    """Beyond 32 MB the output is asked for on huge pages; every element is written all the same."""
    z = random_latents(3, 700, 64, 0.2)
    W, b = dictionary(64, 1024)
    rank = torch.arange(64).int()
    ks = [0, 5, 9, 13, 21, 34, 40, 50, 60, 64, 64, 64, 64]
    on, off = pk.decode_sweep(z, rank, ks, W, b)
    expected = checked.decode_sweep(SweepCall(*csr(z), W, b, rank, ks, None))
    torch.testing.assert_close((on, off), expected, rtol=1e-4, atol=1e-4)


def test_float64_takes_the_reference():
    z = random_latents(2, 5, 11, 0.5)
    z = z.with_values(z.values.double())
    W, b = (t.double() for t in dictionary(11, 6))
    rank = torch.arange(11).int()
    assert torch.equal(pk.decode(z, W, b), reference.decode(DecodeCall(*csr(z), W, b)))
    assert pk.decode_masked(z, rank < 4, W, b).dtype == torch.float64
    assert pk.decode_sweep(z, rank, [4], W, b)[0].dtype == torch.float64


def test_any_strides():
    z = random_latents(0, 6, 10)
    W, b = dictionary(10, 24)
    wide = torch.stack([z.values, z.values], 1)[:, 0]
    rank = torch.arange(20).int()[::2] // 2
    assert torch.equal(pk.decode(z.with_values(wide), W.t().contiguous().t(), b), pk.decode(z, W, b))
    on = pk.decode_sweep(z, rank, [4], W, b)[0][0]
    assert torch.equal(on, pk.decode_sweep(z, rank.contiguous(), [4], W, b)[0][0])


def test_places_beyond_the_entries_are_not_looked_at():
    z = random_latents(0, 6, 10)
    W, b = dictionary(10, 24)
    bounded = pk.SparseLatents(
        torch.cat([z.values, torch.full((9,), torch.nan)]),
        torch.cat([z.indices, torch.full((9,), -7, dtype=torch.int32)]),
        z.indptr,
        z.shape,
    )
    rank = torch.arange(10).int()
    assert torch.equal(pk.decode(bounded, W, b), pk.decode(z, W, b))
    assert torch.equal(pk.decode_masked(bounded, rank < 5, W, b), pk.decode_masked(z, rank < 5, W, b))
    for a, c in zip(pk.decode_sweep(bounded, rank, [5], W, b), pk.decode_sweep(z, rank, [5], W, b), strict=True):
        assert torch.equal(a, c)


def test_a_matrix_put_together_wrongly_is_an_error():
    W, b = dictionary(5, 192)
    rank = torch.arange(5).int()
    broken = [([0, 5], [0, 1, 2]), ([0, -1], [0, 1, 2]), ([0, 1], [0, 1, 7]), ([0, 1], [0, 3, 2]), ([0, 1], [1, 1, 2])]
    for indices, indptr in broken:
        z = pk.SparseLatents(torch.ones(2), torch.tensor(indices, dtype=torch.int32), torch.tensor(indptr), (2, 5))
        for run in (
            lambda z: pk.decode(z, W, b),
            lambda z: pk.decode_masked(z, rank < 3, W, b),
            lambda z: pk.decode_sweep(z, rank, [2], W, b),
        ):
            with pytest.raises(ValueError, match="indices reach|indptr does not ascend"):
                run(z)


def test_class_ids_outside_of_the_table_are_an_error():
    z = random_latents(0, 2, 5)
    W, b = dictionary(5, 3)
    rank = torch.arange(10).view(2, 5).int()
    for ids in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match=r"class_ids reach .*; expected 0\.\.1"):
            pk.decode_masked(z, rank < 3, W, b, torch.tensor(ids))
        with pytest.raises(ValueError, match=r"class_ids reach .*; expected 0\.\.1"):
            pk.decode_sweep(z, rank, [2], W, b, torch.tensor(ids))

"""The decode kernels against float64 and against their own laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import reference
from patchsae_kernels.calls import DecodeCall, MaskedDecodeCall
from patchsae_kernels.triton import decode as kernels
from patchsae_kernels.triton.launch import record
from tests.examples import examples
from tests.kernels.cases import random_latents


def csr(z):
    return z.values, z.indices, z.indptr


def dictionary(s, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(s, d, generator=g), torch.randn(d, generator=g)


def exact(z, W, b):
    return z.to_dense().double() @ W.double() + b.double()


def assert_near(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def in_slices(block_d):
    """Several slices a row at the widths of these tests."""
    return lambda width, dtype, warps=1: kernels.DecodeLaunch(block_d, warps)


few_latents = st.builds(
    random_latents,
    st.integers(0, 2**31),
    st.integers(0, 5),
    st.sampled_from([1, 7, 8, 9, 40]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
widths = st.sampled_from([1, 5, 16, 32, 37])


@given(few_latents, widths, st.sampled_from([torch.float32, torch.bfloat16]))
def test_decode_is_the_dense_product(z, d, dtype):
    W, b = dictionary(z.shape[1], d)
    y = kernels.decode(DecodeCall(*csr(z), W.to(dtype), b))
    assert y.dtype == torch.float32
    assert_near(y, exact(z, W.to(dtype), b))


@pytest.mark.parametrize("entries", [383, 384, 385, 768, 2500])
def test_a_token_with_more_entries_than_a_segment(entries):
    """Its further segments are added to its first, whatever its neighbours have; with the loss terms too."""
    g = torch.Generator().manual_seed(entries)
    counts = torch.tensor([3, entries, 0, 400, entries])
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    indices = torch.cat([torch.randperm(3000, generator=g)[:n].sort().values for n in counts.tolist()]).int()
    z = pk.SparseLatents(torch.rand(len(indices), generator=g), indices, indptr, (5, 3000))
    W, b = dictionary(3000, 24)
    x = torch.randn(5, 24, generator=g)
    y, squared_error, l1, l0 = kernels.decode_with_losses(DecodeCall(*csr(z), W, b), x)
    torch.testing.assert_close(y.double(), exact(z, W, b), rtol=1e-4, atol=1e-4)
    assert torch.equal(y, kernels.decode(DecodeCall(*csr(z), W, b)))
    torch.testing.assert_close(squared_error, (y - x).square().sum(1))
    torch.testing.assert_close(l1, torch.stack([part.sum() for part in z.values.split(counts.tolist())]))
    assert torch.equal(l0.long(), counts)
    alone = kernels.decode(DecodeCall(*csr(z.select_rows(torch.tensor([1]))), W, b))
    assert torch.equal(alone[0], y[1]), "the sum depends on nothing but the token"


def test_a_long_token_of_an_unknown_class_is_nan():
    z = pk.SparseLatents(torch.ones(900), torch.arange(900).int(), torch.tensor([0, 450, 900]), (2, 900))
    W, b = dictionary(900, 16)
    y = kernels.decode_masked(
        MaskedDecodeCall(*csr(z), W, b, torch.ones(1, 900, dtype=torch.bool), torch.tensor([0, 7]))
    )
    assert_near(y[:1], exact(z, W, b)[:1])
    assert y[1].isnan().all()


@pytest.mark.parametrize("d", [16, 40, 48])
def test_a_row_of_several_slices(monkeypatch, d):
    monkeypatch.setattr(kernels, "decode_launch", in_slices(16))
    z = random_latents(3, 4, 30, 0.5)
    W, b = dictionary(30, d)
    x = torch.randn(4, d)
    y, squared_error, _, _ = kernels.decode_with_losses(DecodeCall(*csr(z), W, b), x)
    assert_near(y, exact(z, W, b))
    assert_near(squared_error, (y - x).double().square().sum(1))
    assert torch.equal(y, kernels.decode(DecodeCall(*csr(z), W, b)))


def test_long_and_empty_rows():
    dense = torch.zeros(4, 300)
    dense[1] = torch.rand(300)
    dense[3, ::2] = torch.rand(150)
    z = type(random_latents(0, 1, 1)).from_dense(dense)
    W, b = dictionary(300, 16)
    y = kernels.decode(DecodeCall(*csr(z), W, b))
    assert_near(y, exact(z, W, b))
    assert torch.equal(y[0], b)
    assert torch.equal(y[2], b)


def test_values_in_bfloat16():
    z = random_latents(0, 4, 20, 0.5)
    z = z.with_values(z.values.bfloat16())
    W, b = dictionary(20, 8)
    assert_near(kernels.decode(DecodeCall(*csr(z), W, b)), exact(z, W, b))


def test_any_strides_of_the_dictionary():
    z = random_latents(0, 6, 10)
    W, b = dictionary(10, 8)
    expected = kernels.decode(DecodeCall(*csr(z), W, b))
    wide = torch.full((10, 20), float("nan"))
    wide[:, 3:11] = W
    for layout in (W.t().contiguous().t(), wide[:, 3:11]):
        assert torch.equal(kernels.decode(DecodeCall(*csr(z), layout, b.repeat_interleave(2)[::2])), expected)


def test_a_slice_of_the_tokens_gives_a_slice_of_the_bits():
    z = random_latents(5, 9, 60, 0.4)
    W, b = dictionary(60, 24)
    x = torch.randn(9, 24)
    whole = kernels.decode_with_losses(DecodeCall(*csr(z), W, b), x)
    for part in (slice(0, 1), slice(2, 7), slice(8, 9)):
        first, last = z.indptr[part.start], z.indptr[part.stop]
        pointers = z.indptr[part.start : part.stop + 1]
        views = z.values[first:last], z.indices[first:last], pointers - first
        for a, b_ in zip(kernels.decode_with_losses(DecodeCall(*views, W, b), x[part]), whole, strict=True):
            assert torch.equal(a, b_[part])
        assert torch.equal(kernels.decode(DecodeCall(z.values, z.indices, pointers, W, b)), whole[0][part])


def test_the_same_bits_again():
    z = random_latents(6, 5, 40, 0.5)
    W, b = dictionary(40, 24)
    assert torch.equal(kernels.decode(DecodeCall(*csr(z), W, b)), kernels.decode(DecodeCall(*csr(z), W, b)))


@examples(30)
@given(few_latents, widths, st.one_of(st.none(), st.integers(1, 3)), st.integers(0, 1000))
def test_masked_equals_the_decode_of_what_is_kept(z, d, classes, seed):
    n, s = z.shape
    W, b = dictionary(s, d)
    g = torch.Generator().manual_seed(seed)
    keep = torch.rand(*(() if classes is None else (classes,)), s, generator=g) < 0.5
    ids = None if classes is None else torch.randint(classes, (n,), generator=g)
    kept = keep if ids is None else keep[ids]
    expected = torch.where(kept, z.to_dense(), 0).double() @ W.double() + b.double()
    assert_near(kernels.decode_masked(MaskedDecodeCall(*csr(z), W, b, keep, ids)), expected)
    assert_near(expected.float(), reference.decode(DecodeCall(*filtered(z, keep, ids), W, b)).double())


def filtered(z, keep, ids):
    return reference.filter_entries(*csr(z), reference.per_entry(keep, z.indices, z.indptr, ids))


def test_rows_of_dropped_latents_are_not_read():
    z = random_latents(1, 5, 40, 0.6)
    W, b = dictionary(40, 20)
    keep = torch.arange(40) % 3 == 0
    expected = kernels.decode_masked(MaskedDecodeCall(*csr(z), W, b, keep, None))
    W[~keep] = float("nan")
    assert torch.equal(kernels.decode_masked(MaskedDecodeCall(*csr(z), W, b, keep, None)), expected)
    poisoned = torch.where(keep[z.indices.long()], z.values, float("inf"))
    assert torch.equal(
        kernels.decode_masked(MaskedDecodeCall(poisoned, z.indices, z.indptr, W, b, keep, None)), expected
    )


def test_keeping_all_and_nothing():
    z = random_latents(1, 5, 40, 0.6)
    W, b = dictionary(40, 20)
    everything = torch.ones(40, dtype=torch.bool)
    assert torch.equal(
        kernels.decode_masked(MaskedDecodeCall(*csr(z), W, b, everything, None)),
        kernels.decode(DecodeCall(*csr(z), W, b)),
    )
    assert torch.equal(kernels.decode_masked(MaskedDecodeCall(*csr(z), W, b, ~everything, None)), b.expand(5, 20))


@pytest.mark.parametrize("classes", [0, 3])
def test_a_class_that_does_not_exist_makes_its_token_nan(classes):
    z = random_latents(2, 4, 12, 0.5)
    z = type(z).from_dense(z.to_dense() * torch.tensor([[1.0], [0.0], [1.0], [1.0]]))
    W, b = dictionary(12, 20)
    keep = torch.ones(classes, 12, dtype=torch.bool)
    ids = torch.tensor([3, -1, 2, 2**40])
    y = kernels.decode_masked(MaskedDecodeCall(*csr(z), W, b, keep, ids))
    known = (ids >= 0) & (ids < classes)
    assert y[~known].isnan().all()
    assert torch.equal(y[known], kernels.decode(DecodeCall(*csr(z), W, b))[known])


@examples(25)
@given(few_latents, widths, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_the_losses_are_those_of_the_reconstruction(z, d, dtype):
    n, s = z.shape
    W, b = dictionary(s, d)
    x = torch.randn(n, 2 * d, generator=torch.Generator().manual_seed(1)).to(dtype)[:, :d]
    y, squared_error, l1, l0 = kernels.decode_with_losses(DecodeCall(*csr(z), W, b), x)
    assert torch.equal(y, kernels.decode(DecodeCall(*csr(z), W, b)))
    assert_near(squared_error, (exact(z, W, b) - x.double()).square().sum(1))
    assert_near(l1, z.to_dense().double().sum(1))
    assert l0.dtype == torch.int32
    assert torch.equal(l0.long(), z.indptr.diff())


def test_many_tokens_have_their_errors_summed():
    z = random_latents(0, kernels.TOKENS_PER_SUM + 3, 3, 0.5)
    W, b = dictionary(3, 2)
    x = torch.zeros(z.shape[0], 2)
    _, squared_error, _, _ = kernels.decode_with_losses(DecodeCall(*csr(z), W, b), x)
    assert_near(squared_error, exact(z, W, b).square().sum(1))


@pytest.mark.parametrize("width", [1, 100, 512, 768, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slice_is_a_warp_of_16_byte_loads_or_the_whole_row(width, dtype):
    block = kernels.decode_launch(width, dtype).block_d
    assert block & (block - 1) == 0
    assert block * dtype.itemsize == 512 or width <= block <= max(16, 2 * width)


def test_the_host_code_touches_no_data():
    with record() as launches, torch.device("meta"):
        values, indices = torch.empty(90), torch.empty(90, dtype=torch.int32)
        indptr, W, b, x = torch.empty(8, dtype=torch.int64), torch.empty(50, 40), torch.empty(40), torch.empty(7, 40)
        y, *_ = kernels.decode_with_losses(DecodeCall(values, indices, indptr, W, b), x)
    assert y.shape == (7, 40)
    assert [launch.kernel for launch in launches] == [kernels.decode_kernel, kernels.decode_losses_kernel]
    assert launches[0].grid == (7, 1)


def test_dtypes():
    def served(values, rows, bias):
        _, indices, indptr = csr(random_latents(0, 1, 3))
        return kernels.serves(DecodeCall(values, indices, indptr, rows, bias))

    f32, f64, bf16 = (torch.ones(1, dtype=d) for d in (torch.float32, torch.float64, torch.bfloat16))
    assert served(f32, f32, f32)
    assert served(bf16, bf16, f32)
    assert not served(f64, f32, f32)
    assert not served(f32, f64, f32)
    assert not served(f32, f32, f64)

"""decode, decode_masked and decode_sweep against dense float64 products."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import cpu, reference
from patchsae_kernels.calls import DecodeBackwardCall
from tests.kernels.cases import latents, random_latents


def dictionary(s, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(s, d, generator=g), torch.randn(d, generator=g)


def double(z):
    return pk.SparseLatents(z.values.double(), z.indices, z.indptr, z.shape)


@given(latents, st.sampled_from([1, 3, 64, 191, 192, 193, 400]))
def test_decode_is_the_dense_product(z, d):
    W, b = dictionary(z.shape[1], d)
    expected = z.to_dense().double() @ W.double() + b.double()
    torch.testing.assert_close(pk.decode(z, W, b).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pk.decode(double(z), W.double(), b.double()), expected)


@given(latents, st.sampled_from([5, 192, 200]))
def test_decode_of_bfloat16_rows_is_exact_in_their_values(z, d):
    W, b = dictionary(z.shape[1], d)
    expected = z.to_dense().double() @ W.bfloat16().double() + b.double()
    torch.testing.assert_close(pk.decode(z, W.bfloat16(), b).double(), expected, rtol=1e-5, atol=1e-5)


def test_decode_takes_any_strides():
    z = random_latents(0, 6, 10)
    W, b = dictionary(10, 8)
    torch.testing.assert_close(pk.decode(z, W.t().contiguous().t(), b.repeat(2)[::1][:8]), pk.decode(z, W, b))


def test_decode_does_not_depend_on_threads():
    z = random_latents(1, 50, 200)
    W, b = dictionary(200, 333)
    several = pk.decode(z, W, b)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(pk.decode(z, W, b), several)
        torch.set_num_threads(5)
        assert torch.equal(pk.decode(z, W, b), several)
    finally:
        torch.set_num_threads(threads)


def test_decode_gradients():
    z = double(random_latents(2, 4, 9, 0.4))
    W, b = dictionary(9, 5)
    leaves = [t.clone().requires_grad_() for t in (z.values, W.double(), b.double())]
    torch.autograd.gradcheck(lambda v, W, b: pk.decode(z.with_values(v), W, b), leaves)


def test_decode_masked_gradients():
    z = double(random_latents(2, 4, 9, 0.4))
    W, b = dictionary(9, 5)
    keep = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    ids = torch.tensor([0, 2, 1, 0])
    leaves = [t.clone().requires_grad_() for t in (z.values, W.double(), b.double())]
    torch.autograd.gradcheck(lambda v, W, b: pk.decode_masked(z.with_values(v), keep, W, b, ids), leaves)


def test_decode_backward_in_pieces_changes_nothing():
    z = double(random_latents(2, 8, 9, 0.6))
    W, _ = dictionary(9, 5)
    grad = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = reference.decode_backward(DecodeBackwardCall(grad, z.values, z.indices, z.indptr, W.double(), 2**28))
    pieces = reference.decode_backward(DecodeBackwardCall(grad, z.values, z.indices, z.indptr, W.double(), 200))
    for a, b in zip(whole, pieces, strict=True):
        assert torch.equal(a, b)


@st.composite
def sweeps(draw):
    z = draw(latents)
    n, s = z.shape
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    classes = draw(st.one_of(st.none(), st.integers(1, 3)))
    if classes is None:
        rank, ids = torch.randperm(s, generator=g).int(), None
    else:
        rank = torch.stack([torch.randperm(s, generator=g) for _ in range(classes)]).int()
        ids = torch.randint(classes, (n,), generator=g)
    ks = draw(st.lists(st.integers(0, s + 2), max_size=5))
    return z, rank, ids, ks


@given(sweeps())
def test_sweep_equals_masked_decodes_equals_dense(sweep):
    z, rank, ids, ks = sweep
    W, b = (t.double() for t in dictionary(z.shape[1], 4))
    on, off = pk.decode_sweep(double(z), rank, ks, W, b, class_ids=ids)
    assert on.shape == off.shape == (len(ks), z.shape[0], 4)
    for i, k in enumerate(ks):
        keep = rank < k
        per_token = keep if ids is None else keep[ids]
        dense = torch.where(per_token, z.to_dense().double(), 0) @ W + b
        torch.testing.assert_close(on[i], dense)
        torch.testing.assert_close(pk.decode_masked(double(z), keep, W, b, ids), dense)
        torch.testing.assert_close(off[i], pk.decode_masked(double(z), ~keep, W, b, ids))


def test_everything_dropped_is_exactly_the_bias():
    z = random_latents(0, 6, 20)
    W, b = dictionary(20, 7)
    on, off = pk.decode_sweep(z, torch.arange(20).int(), [0, 20], W, b)
    assert torch.equal(off[1], b.expand(6, 7))
    assert torch.equal(on[0], b.expand(6, 7))
    torch.testing.assert_close(on[1], pk.decode(z, W, b))
    torch.testing.assert_close(off[0], pk.decode(z, W, b))


@pytest.mark.skipif(not cpu.available, reason="the native extension is not installed")
def test_the_native_decode_is_what_runs_on_the_cpu():
    assert pk.describe()["ops"]["decode"].startswith("native")


@pytest.mark.skipif(not cpu.available, reason="the native extension is not installed")
def test_a_matrix_put_together_wrongly_is_an_error_not_a_crash():
    W, b = dictionary(5, 192)
    for indices, indptr in (([0, 5], [0, 1, 2]), ([0, -1], [0, 1, 2]), ([0, 1], [0, 1, 7]), ([0, 1], [0, 3, 2])):
        z = pk.SparseLatents(torch.ones(2), torch.tensor(indices, dtype=torch.int32), torch.tensor(indptr), (2, 5))
        with pytest.raises(ValueError, match="indices reach|indptr does not ascend"):
            pk.decode(z, W, b)


@pytest.mark.slow
def test_without_the_extension_the_package_imports_and_says_so():
    program = """
import sys
sys.modules["patchsae_kernels._native"] = None
import torch, patchsae_kernels as pk
z = pk.SparseLatents.from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
y = pk.decode(z, torch.tensor([[1.0], [3.0]]), torch.tensor([0.5]))
assert y.tolist() == [[6.5], [1.5]], y
d = pk.describe()
assert not d["native"]["available"] and "extension is not here" in d["ops"]["decode"], d
"""
    subprocess.run([sys.executable, "-c", program], check=True)

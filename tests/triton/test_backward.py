"""The latent-major view and the gradients that are summed over it, in the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import reference
from patchsae_kernels.calls import DecodeBackwardCall, EncodeBackwardCall
from patchsae_kernels.triton import backward, latent_major
from patchsae_kernels.triton.launch import record
from tests.examples import examples
from tests.kernels.cases import make_case, random_latents

BUDGET = 2**28
few = examples(12)
few_latents = st.builds(
    random_latents,
    st.integers(0, 2**31),
    st.integers(0, 9),
    st.sampled_from([1, 7, 30]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
widths = st.sampled_from([1, 5, 16, 37])


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of 3 entries: most latents of a small case are long."""
    for module in (latent_major, backward):
        monkeypatch.setattr(module, "SEGMENT", 3)


def csr(z):
    return z.values, z.indices, z.indptr


def padded(z, places):
    """The same CSR with unused places, full of garbage, behind its end."""
    values = torch.cat([z.values, torch.full((places,), float("nan"))])
    return values, torch.cat([z.indices, torch.full((places,), 2**30, dtype=torch.int32)]), z.indptr


def assert_close(ours, exact, tolerance=1e-5):
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@few
@given(few_latents, st.integers(0, 9))
def test_the_sort_is_the_stable_one(z, spare):
    by_latent = latent_major.sort_by_latent(*padded(z, spare)[1:], z.shape[1])
    order = torch.argsort(z.indices, stable=True)
    assert torch.equal(by_latent.order[: z.nnz], order)
    assert torch.equal(by_latent.tokens[: z.nnz].long(), z.rows()[order])
    assert torch.equal(by_latent.indptr.diff(), torch.bincount(z.indices, minlength=z.shape[1]))


@pytest.mark.parametrize("latents", [32_768, 65_535, 65_536, 131_072])
def test_keys_of_16_and_of_32_bits(latents):
    indices = torch.tensor([0, 5, latents - 1, 32_767, latents - 1, 0], dtype=torch.int32)
    by_latent = latent_major.sort_by_latent(indices, torch.tensor([0, 3, 5, 5]), latents)
    order = torch.argsort(indices[:5], stable=True)
    assert torch.equal(by_latent.order[:5], order)
    assert torch.equal(by_latent.tokens[:5], torch.tensor([0, 0, 0, 1, 1], dtype=torch.int32)[order])
    assert torch.equal(by_latent.indptr.diff(), torch.bincount(indices[:5], minlength=latents))


@pytest.mark.usefixtures("short_segments")
def test_a_long_latent_has_as_many_segments_as_it_needs():
    dense = torch.zeros(10, 5)
    dense[:7, 1], dense[:3, 2], dense[:, 4] = 1, 1, 1  # 3 + 3 + 1, 3, and 3 + 3 + 3 + 1 entries
    z = pk.SparseLatents.from_dense(dense)
    by_latent = latent_major.sort_by_latent(z.indices, z.indptr, 5)
    assert by_latent.extra_ends.tolist() == [0, 2, 2, 2, 5]
    assert by_latent.extra_latents.tolist() == [1, 1, 4, 4, 4, 5]


def check_decode(z, d, spare=0):
    case = make_case(3, z.shape[0], d, z.shape[1])
    ours = backward.decode_backward(DecodeBackwardCall(case.x, *padded(z, spare), case.W_dec, BUDGET))
    exact = reference.decode_backward(
        DecodeBackwardCall(case.x.double(), z.values.double(), z.indices, z.indptr, case.W_dec.double(), BUDGET)
    )
    assert_close((ours[0][: z.nnz], *ours[1:]), exact)


def check_encode(z, d, dtype=torch.float32):
    case = make_case(4, z.shape[0], d, z.shape[1])
    x = case.x.to(dtype)
    ours = backward.encode_backward(EncodeBackwardCall(*csr(z), x, case.W_enc, case.b_dec))
    exact = reference.encode_backward(
        EncodeBackwardCall(z.values.double(), z.indices, z.indptr, x.double(), case.W_enc.double(), case.b_dec.double())
    )
    assert ours[0].dtype == dtype
    assert ours[1].stride() == case.W_enc.stride() or 1 in ours[1].shape
    assert_close(ours[1:], exact[1:])
    assert_close(ours[:1], exact[:1], 1e-5 if dtype == torch.float32 else 1e-2)


@few
@given(few_latents, widths)
def test_backwards_are_the_reference_in_float64(z, d):
    check_decode(z, d)
    check_encode(z, d)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_long_latents_in_segments(density):
    z = random_latents(1, 25, 9, density)
    check_decode(z, 20)
    check_encode(z, 20)


def test_a_csr_of_fixed_capacity():
    check_decode(random_latents(1, 6, 9, 0.4), 20, spare=7)


def test_without_the_gradient_of_x_the_others_are_the_same():
    z, case = random_latents(2, 6, 9, 0.4), make_case(4, 6, 8, 9)
    call = EncodeBackwardCall(*csr(z), case.x, case.W_enc, case.b_dec)
    for chosen in (backward.encode_backward, reference.encode_backward):
        whole, part = chosen(call), chosen(replace(call, with_x=False))
        assert part[0].shape == (0, 8)
        assert_close(part[1:], whole[1:])


def test_tokens_in_half_precision():
    check_encode(random_latents(2, 6, 9, 0.4), 20, torch.float16)


@pytest.mark.usefixtures("short_segments")
def test_sums_go_on_where_they_were():
    z, case = random_latents(5, 12, 9, 0.6), make_case(5, 12, 20, 9)
    by_latent = latent_major.sort_by_latent(z.indices, z.indptr, 9)
    sums = torch.randn(9, 20), torch.randn(9, 20), torch.randn(9)
    scale, values = torch.rand(12), z.values[by_latent.order]
    dense, dots = z.to_dense().double(), (case.x * scale[:, None]).double() @ case.W_dec.double().t() + 0.25
    dots = torch.where(dense != 0, dots, 0)
    expected = (
        sums[0] + dense.t() @ (case.x * scale[:, None]).double(),
        sums[1] + dots.t() @ (case.x - case.b_dec).double(),
        sums[2] + dots.sum(0),
    )
    names = dict(zip(("sum_g", "sum_x", "sum_dots"), sums, strict=True))
    inputs = {"g": case.x, "scale": scale, "W": case.W_dec, "constant": 0.25, "values": values}
    backward.gradients(by_latent, 20, **inputs, x=case.x, shift=case.b_dec, **names, accumulate=True)
    assert_close(sums, expected)


def test_dtypes_that_are_the_reference_s():
    z, case = random_latents(2, 6, 9, 0.4), make_case(4, 6, 8, 9).double()
    values = z.values.double()
    decoded = (case.x, values, z.indices, z.indptr, case.W_dec, BUDGET)
    encoded = (values, z.indices, z.indptr, case.x, case.W_enc, case.b_dec)
    assert not backward.serves(DecodeBackwardCall(*decoded))
    assert not backward.serves(EncodeBackwardCall(*encoded))
    for ours in (torch.ops.patchsae.decode_backward(*decoded), torch.ops.patchsae.encode_backward(*encoded)):
        assert all(t.dtype == torch.float64 for t in ours)


@pytest.mark.usefixtures("short_segments")
def test_the_same_bits_again():
    z, case = random_latents(0, 20, 12, 0.7), make_case(0, 20, 24, 12)
    first, second = (
        [
            *backward.decode_backward(DecodeBackwardCall(case.x, *csr(z), case.W_dec, BUDGET)),
            *backward.encode_backward(EncodeBackwardCall(*csr(z), case.x, case.W_enc, case.b_dec)),
        ]
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def meta(*shape, dtype=torch.float32):
    """Said with every tensor: `poisoned_memory` may hide torch.empty from ``with torch.device("meta")``."""
    return torch.empty(shape, dtype=dtype, device="meta")


def test_the_host_code_touches_no_data():
    with record() as launches:
        values, indices, indptr = meta(900), meta(900, dtype=torch.int32), meta(8, dtype=torch.int64)
        W, g = meta(50, 40), meta(7, 40)
        backward.decode_backward(DecodeBackwardCall(g, values, indices, indptr, W, BUDGET))
    assert [launch.kernel for launch in launches] == [
        latent_major.latent_major_keys_kernel,
        backward.latent_gradients_kernel,
        backward.latent_gradients_join_kernel,
    ]
    assert [launch.grid for launch in launches] == [(7,), (51,), (1,)]

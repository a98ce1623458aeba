"""encode against the float64 dense formula, for every activation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from tests.kernels.cases import assert_same, cases, make_case


def rounding(case):
    """A bound on the float32 error of a pre-activation, [N, S]."""
    d = case.double()
    scale = (d.x - d.b_dec).abs() @ d.W_enc.abs() + d.b_enc.abs()
    return scale * (case.x.shape[1] + 4) * 2**-23


@given(cases())
def test_relu_is_the_float64_relu_up_to_rounding(case):
    z = case.encode().validate()
    expected, slack = case.double().pre(), rounding(case)
    dense = z.to_dense().double()
    active = torch.zeros_like(dense, dtype=torch.bool)
    active[z.rows(), z.indices.long()] = True
    assert not (active & (expected < -slack)).any()
    assert not (~active & (expected > slack)).any()
    assert (torch.where(active, (dense - expected).abs(), 0) <= slack).all()
    assert z.values.dtype == torch.float32


@given(cases())
def test_oracle_in_float64_is_the_dense_formula(case):
    exact = case.double()
    torch.testing.assert_close(exact.encode().to_dense(), exact.pre().relu(), rtol=1e-12, atol=1e-12)


@given(cases(min_n=1), st.integers(1, 70))
def test_topk_keeps_the_largest_positive(case, k):
    k = min(k, case.W_enc.shape[1])
    z = case.double().encode(activation="topk", k=k).validate()
    pre = case.double().pre()
    order = torch.sort(pre, dim=1, descending=True, stable=True).indices[:, :k]
    expected = torch.zeros_like(pre).scatter(1, order, pre.gather(1, order)).clamp(min=0)
    torch.testing.assert_close(z.to_dense(), expected, rtol=1e-12, atol=1e-12)


def test_topk_breaks_ties_towards_the_lower_latent():
    W = torch.ones(1, 6)
    z = pk.encode(torch.ones(1, 1), W, torch.tensor([0.0, 1, 0, 1, 0, 0]), torch.zeros(1), activation="topk", k=4)
    assert z.indices.tolist() == [0, 1, 2, 3]
    assert z.values.tolist() == [1, 2, 1, 2]


@given(cases(), st.floats(0, 2))
def test_jumprelu_is_the_preactivation_above_its_threshold(case, level):
    exact = case.double()
    threshold = torch.linspace(0, level, case.W_enc.shape[1], dtype=torch.float64)
    z = exact.encode(activation="jumprelu", threshold=threshold).validate()
    pre = exact.pre()
    torch.testing.assert_close(z.to_dense(), torch.where(pre > threshold, pre, 0), rtol=1e-12, atol=1e-12)


@given(cases())
def test_bf16_precision_is_the_product_of_rounded_operands(case):
    z = case.encode(precision="bf16")
    centred = (case.x - case.b_dec).bfloat16().double()
    expected = (centred @ case.W_enc.bfloat16().double() + case.b_enc.double()).relu()
    torch.testing.assert_close(z.to_dense().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_widened(dtype):
    case = make_case(0, 5, 16, 30)
    low = case._replace(x=case.x.to(dtype))
    assert_same(low.encode(), case._replace(x=low.x.float()).encode())


def test_budget_cuts_rows_and_changes_nothing_but_rounding():
    case = make_case(0, 300, 24, 64)
    whole, cut = case.encode(), case.encode(budget_mb=0.02)
    torch.testing.assert_close(cut.to_dense(), whole.to_dense(), rtol=1e-5, atol=1e-6)
    exact = case.double()
    whole, cut = (exact.encode(activation="topk", k=3, budget_mb=mb) for mb in (256, 0.01))
    assert torch.equal(cut.indices, whole.indices)
    torch.testing.assert_close(cut.values, whole.values)


def test_prepared_weights_notice_a_change_in_place():
    case = make_case(1, 4, 8, 12)
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    before = pk.encode(case.x, w)
    case.W_enc.mul_(2)
    assert_same(pk.encode(case.x, w), case.encode())
    assert not torch.equal(pk.encode(case.x, w).to_dense(), before.to_dense())


def test_gradients():
    case = make_case(3, 5, 6, 11, bias=0.3).double()
    leaves = [t.clone().requires_grad_() for t in (case.x, case.W_enc, case.b_enc, case.b_dec)]
    for options in (
        {},
        {"activation": "topk", "k": 3},
        {"activation": "jumprelu", "threshold": torch.full((11,), 0.2)},
    ):
        torch.autograd.gradcheck(lambda x, W, be, bd, o=options: pk.encode(x, W, be, bd, **o).values, leaves, eps=1e-7)


@given(cases())
def test_gradients_equal_dense_autograd(case):
    exact = case.double()
    sparse = [t.clone().requires_grad_() for t in exact]
    dense = [t.clone().requires_grad_() for t in exact]
    y = pk.decode(pk.encode(sparse[0], sparse[1], sparse[2], sparse[4]), sparse[3], sparse[4])
    expected = ((dense[0] - dense[4]) @ dense[1] + dense[2]).relu() @ dense[3] + dense[4]
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(sparse, dense, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_gradient_of_W_enc_is_latent_major():
    case = make_case(0, 4, 6, 10)
    W = case.W_enc.clone(memory_format=torch.preserve_format).requires_grad_()
    pk.encode(case.x, W, case.b_enc, case.b_dec).values.sum().backward()
    assert W.grad.stride() == (1, 6)

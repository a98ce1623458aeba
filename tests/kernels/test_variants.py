"""What trains with other activations and dead-latent terms, against autograd of the dense formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import patchsae_kernels as pk
from tests.kernels.cases import Case, make_case

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


class Jump(torch.autograd.Function):
    """The published estimators of arXiv 2407.14435 on dense pre-activations: latents and the step function."""

    @staticmethod
    def forward(ctx, pre: Tensor, theta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        active = pre > theta
        ctx.save_for_backward(active, (pre - theta).abs() < eps / 2, theta)
        ctx.eps = eps
        return pre * active, active.to(pre.dtype)

    @staticmethod
    def backward(ctx, grad_z: Tensor, grad_step: Tensor) -> tuple[Tensor, Tensor, None]:
        active, band, theta = ctx.saved_tensors
        return grad_z * active, (-(theta * grad_z + grad_step) / ctx.eps * band).sum(0), None


def leaves(case: Case) -> Case:
    return Case(*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in case))


def jumprelu_gradients(case: Case, theta: Tensor, eps: float, dense: bool) -> tuple[Tensor, ...]:
    """Loss, then the gradient of every leaf and the threshold."""
    c, theta = leaves(case), theta.clone().requires_grad_()
    if dense:
        z, step = Jump.apply(c.pre(), theta, eps)
        y, l0 = z @ c.W_dec + c.b_dec, step.sum(1).mean()
    else:
        z, l0 = pk.encode_jumprelu(c.x, c.W_enc, c.b_enc, c.b_dec, theta, bandwidth=eps)
        y = pk.decode(z, c.W_dec, c.b_dec)
    loss = (y - c.x).square().sum() + 0.3 * l0
    loss.backward()
    return (loss.detach(), *(leaf.grad for leaf in c), theta.grad)


@pytest.mark.parametrize("eps", [0.01, 0.3, 2.0])  # at 2.0 bands reach below zero
def test_a_threshold_learns_from_its_band(eps):
    case, theta = make_case(9, 12, 10, 25), torch.linspace(0, 0.5, 25)
    ours = jumprelu_gradients(case, theta, eps, dense=False)
    wanted = jumprelu_gradients(case.double(), theta.double(), eps, dense=True)
    assert wanted[-1].count_nonzero() > (0 if eps == 0.01 else 10)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_entries_of_the_band_are_zero_and_the_others_are_encode_s():
    case, theta = make_case(9, 12, 10, 25), torch.linspace(0.2, 0.5, 25)
    found, l0 = pk.encode_jumprelu(case.x, case.W_enc, case.b_enc, case.b_dec, theta, bandwidth=0.3)
    expected = case.encode(activation="jumprelu", threshold=theta)
    assert torch.equal(found.to_dense(), expected.to_dense())
    assert found.nnz > expected.nnz
    assert l0 == expected.l0


def test_a_bandwidth_must_be_positive():
    case = make_case(9, 3, 4, 5)
    with pytest.raises(ValueError, match=r"bandwidth is 0\.0; expected a positive"):
        pk.encode_jumprelu(case.x, case.W_enc, case.b_enc, case.b_dec, torch.zeros(5), bandwidth=0.0)


def auxk_gradients(case: Case, dead: Tensor, k: int, dense: bool) -> tuple[Tensor, ...]:
    c = leaves(case)
    if dense:
        pre = c.pre()[:, dead]
        kept = torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0) * (pre > 0)
        found = (pre * kept) @ c.W_dec[dead]
    else:
        found = pk.reconstruct_dead(c.x.detach(), {n: getattr(c, n) for n in NAMES}, dead, k=k)
    loss = (found - c.x.detach().sin()).square().mean()
    return (loss.detach(), *torch.autograd.grad(loss, [getattr(c, n) for n in NAMES]))


@pytest.mark.parametrize("k", [1, 4])
def test_auxk_is_the_dense_formula_on_the_dead_latents(k):
    case, dead = make_case(5, 12, 10, 40, bias=0.0), torch.arange(40) % 4 == 1
    ours, wanted = auxk_gradients(case, dead, k, dense=False), auxk_gradients(case.double(), dead, k, dense=True)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)
    assert (ours[1].t()[~dead] == 0).all()  # W_enc
    assert (ours[1].t()[dead] != 0).any()


def test_auxk_with_no_or_few_dead_latents():
    case = make_case(5, 6, 10, 20)
    params = {n: getattr(case, n) for n in NAMES}
    assert (pk.reconstruct_dead(case.x, params, torch.zeros(20, dtype=torch.bool), k=3) == 0).all()
    two = torch.arange(20) < 2
    assert pk.reconstruct_dead(case.x, params, two, k=7).shape == case.x.shape
    with pytest.raises(ValueError, match="k is 0"):
        pk.reconstruct_dead(case.x, params, two, k=0)

"""Top-k without ReLU: the k largest pre-activations, negative ones where there are no others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from tests.examples import examples


def problem(s: int = 14) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, W, b, c = (torch.randn(shape, generator=g) for shape in [(20, 6), (6, s), (s,), (6,)])
    return x, W, b - 1, c


@pytest.mark.parametrize("k", [1, 6, 14])
@pytest.mark.parametrize("budget_mb", [256, 1e-4])
def test_the_k_largest_are_kept_whatever_their_sign(k: int, budget_mb: float) -> None:
    x, W, b, c = problem()
    z = pk.encode(x, W, b, c, activation="topk_no_relu", k=k, budget_mb=budget_mb).validate()
    pre = (x.double() - c) @ W.double() + b
    order = pre.topk(k).indices
    expected = torch.zeros_like(pre).scatter(1, order, pre.gather(1, order))
    torch.testing.assert_close(z.to_dense().double(), expected, atol=1e-5, rtol=1e-5)
    assert bool((z.values < 0).any()) == bool((pre > 0).sum(1).lt(k).any())


def test_gradients_reach_what_was_negative() -> None:
    leaves = [t.requires_grad_() for t in problem()]
    z = pk.encode(*leaves, activation="topk_no_relu", k=9)
    z.values.square().sum().backward()
    wide = [t.detach().double().requires_grad_() for t in problem()]
    x, W, b, c = wide
    ((x - c) @ W + b).topk(9).values.square().sum().backward()
    for ours, theirs in zip(leaves, wide, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4)


@examples(60)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(0, 9),
    s=st.integers(1, 40),
    share=st.floats(0, 1),
    shift=st.integers(-3, 1),
    budget_mb=st.sampled_from([256, 1e-4]),
)
def test_whole_numbers_are_chosen_as_a_stable_sort_does(
    seed: int, n: int, s: int, share: float, shift: int, budget_mb: float
) -> None:
    """Pre-activations that are exact in float32, with many ties: the lower latent is kept."""
    g = torch.Generator().manual_seed(seed)
    x, W, c = (torch.randint(-2, 3, shape, generator=g).float() for shape in [(n, 4), (4, s), (4,)])
    b = torch.randint(-2, 3, (s,), generator=g).float() + shift
    k = max(1, round(share * s))
    z = pk.encode(x, W, b, c, activation="topk_no_relu", k=k, budget_mb=budget_mb).validate()
    pre = (x - c).double() @ W.double() + b.double()
    order = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
    expected = torch.zeros_like(pre).scatter(1, order, pre.gather(1, order))
    assert torch.equal(z.to_dense().double(), expected)
    assert bool((z.counts() <= k).all())

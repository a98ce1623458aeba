"""sae_step and adam_step against autograd of the dense formula in float64 and torch.optim.Adam."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from tests.kernels.cases import Case, cases, make_case

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


def parameters(case):
    return {name: getattr(case, name).clone(memory_format=torch.preserve_format) for name in PARAMETERS}


def dense_loss(x, p, dead, l1, ghost, cls_weight):
    """The released loss, written down from its definition on dense tensors; x is [B, T, D]."""
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    h = pre.relu()
    y = h @ p["W_dec"] + p["b_dec"]
    elementwise = (y - x) ** 2 / x.norm(dim=-1, keepdim=True)
    ghost_term = torch.zeros((), dtype=x.dtype)
    if ghost and dead.any():
        residual = (x - y).detach()
        length = residual.norm(dim=-1, keepdim=True)
        g = pre[..., dead].exp() @ p["W_dec"][dead]
        g = g * (length / (2 * g.norm(dim=-1, keepdim=True) + 1e-6)).detach()
        term = (g - residual) ** 2 / length
        ghost_term = ((elementwise / (term + 1e-6)).detach() * term).mean()
    weight = torch.ones(x.shape[1], 1, dtype=x.dtype)
    weight[0] = cls_weight
    mse = (elementwise * weight).mean()
    sparsity = l1 * h.abs().sum(-1).mean()
    return mse + sparsity + ghost_term, mse, sparsity, ghost_term


@st.composite
def steps(draw):
    case = draw(cases(min_n=1)).double()
    tokens = draw(st.sampled_from([t for t in range(1, case.x.shape[0] + 1) if case.x.shape[0] % t == 0]))
    x = case.x.view(-1, tokens, case.x.shape[1])
    dead = torch.tensor(draw(st.lists(st.booleans(), min_size=case.b_enc.shape[0], max_size=case.b_enc.shape[0])))
    return (
        case,
        x,
        dead,
        draw(st.booleans()),
        draw(st.sampled_from([1.0, 0.0, 2.5])),
        draw(st.sampled_from([256, 0.003])),
    )


@given(steps())
def test_terms_and_gradients_are_those_of_the_dense_formula(step):
    case, x, dead, ghost, cls_weight, budget_mb = step
    p = parameters(case)
    terms, grads = pk.sae_step(x, p, l1=0.03, dead=dead, ghost=ghost, cls_weight=cls_weight, budget_mb=budget_mb)
    leaves = {name: t.clone().requires_grad_() for name, t in p.items()}
    expected = dense_loss(x, leaves, dead, 0.03, ghost, cls_weight)
    for actual, wanted in zip(terms[:4], expected, strict=True):
        torch.testing.assert_close(actual, wanted.detach())
    expected[0].backward()
    for name in PARAMETERS:
        torch.testing.assert_close(grads[name], leaves[name].grad, rtol=1e-6, atol=1e-10)
        assert grads[name].stride() == p[name].stride()
    h = case.pre().relu()
    assert torch.equal(terms.fired, (h > 0).any(0))
    torch.testing.assert_close(terms.l0, (h > 0).sum(1).double().mean())
    torch.testing.assert_close(terms.squared_error, ((h @ case.W_dec + case.b_dec - case.x) ** 2).sum())


@pytest.mark.parametrize(("ghost", "tolerance"), [(False, 1e-5), (True, 1e-4)])  # ghost divides by differences
def test_float32_agrees_with_float64(ghost, tolerance):
    case = make_case(0, 40, 32, 128, bias=-0.3)
    dead = torch.arange(128) % 5 == 0
    x = case.x.view(8, 5, 32)
    exact, exact_grads = pk.sae_step(x.double(), parameters(case.double()), l1=1e-3, dead=dead, ghost=ghost)
    terms, grads = pk.sae_step(x, parameters(case), l1=1e-3, dead=dead, ghost=ghost)
    torch.testing.assert_close(terms.total.double(), exact.total, rtol=tolerance, atol=0)
    for name in PARAMETERS:
        scale = exact_grads[name].abs().max()
        assert (grads[name].double() - exact_grads[name]).abs().max() <= tolerance * scale


def test_two_dimensional_input_has_no_cls_tokens():
    case = make_case(0, 6, 5, 9).double()
    flat, _ = pk.sae_step(case.x, parameters(case), l1=0.1, cls_weight=7.0)
    plain, _ = pk.sae_step(case.x.view(2, 3, 5), parameters(case), l1=0.1, cls_weight=1.0)
    assert flat.mse == plain.mse


def test_a_token_reconstructed_without_error_has_no_ghost_term():
    case = make_case(0, 2, 4, 6, bias=-50.0).double()
    p = parameters(case)
    terms, grads = pk.sae_step(p["b_dec"].repeat(3, 1), p, l1=0.1, dead=torch.ones(6, dtype=torch.bool))
    assert terms.ghost == 0
    assert all(torch.isfinite(g).all() for g in grads.values())


@given(st.integers(0, 1000))
def test_adam_is_torch_adam_on_the_projected_gradient(seed):
    case = make_case(seed, 3, 5, 7).double()
    p = parameters(case)
    leaves = {name: t.clone(memory_format=torch.preserve_format).requires_grad_() for name, t in p.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=0.05)
    state = pk.adam_init(p)
    g = torch.Generator().manual_seed(seed)
    for _ in range(4):
        grads = {name: torch.randn(t.shape, generator=g, dtype=t.dtype) for name, t in p.items()}
        W = leaves["W_dec"].data
        projected = grads["W_dec"] - (grads["W_dec"] * W).sum(1, keepdim=True) * W
        for name, leaf in leaves.items():
            leaf.grad = projected if name == "W_dec" else grads[name].clone()
        optimiser.step()
        leaves["W_dec"].data /= leaves["W_dec"].data.norm(dim=1, keepdim=True)
        pk.adam_step(p, grads, state, lr=0.05)
        for name in PARAMETERS:
            torch.testing.assert_close(p[name], leaves[name].data)
    assert state.step == 4
    assert state.exp_avg["W_enc"].stride() == p["W_enc"].stride()


def test_without_unit_norm_it_is_plain_adam():
    case = make_case(0, 3, 5, 7).double()
    p, q = parameters(case), parameters(case)
    grads = {name: torch.ones_like(t) for name, t in p.items()}
    pk.adam_step(p, grads, pk.adam_init(p), lr=0.1, unit_norm=False)
    for name in PARAMETERS:
        torch.testing.assert_close(p[name], q[name] - 0.1)


def test_a_step_is_repeatable_bit_for_bit():
    case = make_case(4, 30, 16, 64)
    dead = torch.arange(64) < 9
    first = pk.sae_step(case.x, parameters(case), l1=0.1, dead=dead)
    second = pk.sae_step(case.x, parameters(case), l1=0.1, dead=dead)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert all(torch.equal(first[1][name], second[1][name]) for name in PARAMETERS)


def test_precisions_not_offered_are_refused():
    case = make_case(0, 3, 5, 7)
    with pytest.raises(ValueError, match="precision is"):
        pk.sae_step(case.x, parameters(case), l1=0.1, precision="tf32")


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_dense_step_has_the_same_bits_for_the_same_threads(threads):
    """Wherever its tensors lie in memory; another number of threads is the same to rounding."""
    case = Case(*((4 * t).round() / 4 for t in make_case(5, 70, 40, 900, bias=1.0)))  # what is active is not rounded
    dead = torch.arange(900) % 7 == 0
    before = torch.get_num_threads()
    results = []
    for count in (threads, threads, 4):
        torch.set_num_threads(count)
        terms, grads = pk.sae_step(case.x.clone(), parameters(case), l1=0.03, dead=dead)
        results.append([*terms, *grads.values()])
    torch.set_num_threads(before)
    assert results[0][4] > 0.5 * 900  # dense
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    for a, b in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

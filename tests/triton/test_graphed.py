"""What a CUDA graph would hold of a training step, run in the interpreter, against steps taken one op at a time."""

from __future__ import annotations

import pytest
import torch

import patchsae_kernels as pk
from tests.kernels.cases import make_case
from tests.triton.test_step import PARAMETERS, choosing, counting, parameters

SHAPE = (2, 4, 16)
L1 = 1e-2


@pytest.fixture(autouse=True)
def sparse():
    """What does not fit is taken by the sparse step, too, so that the bits can be compared."""
    with choosing("sparse"):
        yield


def batches(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=g) for _ in range(count)]


def start(**options):
    """A graph on parameters of its own, and the same parameters with a state for `eager`."""
    case = make_case(8, 8, 16, 24, bias=-1.0)
    p, apart = parameters(case), parameters(case)
    state, other = pk.adam_init(p), pk.adam_init(apart)
    graph = pk.StepGraph(p, state, **{"shape": SHAPE, "capacity": 400, "l1": L1, "eps": 1e-4, **options})
    return graph, p, (apart, other)


def eager(apart, x, dead=None, precision="exact"):
    params, state = apart
    terms, grads = pk.sae_step(x, params, l1=L1, dead=dead, precision=precision)
    pk.adam_step(params, grads, state, lr=1e-2, eps=1e-4)
    return terms


def assert_same(p, graph, apart):
    assert graph.state.step == apart[1].step
    for name in PARAMETERS:
        assert torch.equal(p[name], apart[0][name]), name
        assert torch.equal(graph.state.exp_avg_sq[name], apart[1].exp_avg_sq[name]), name


@pytest.mark.slow
def test_steps_have_the_bits_of_steps_taken_apart():
    graph, p, apart = start()
    assert graph.packed is not None
    for x in batches(2):
        terms, expected = graph.step(x, lr=1e-2), eager(apart, x)
        assert all(torch.equal(a, b) for a, b in zip(terms, expected, strict=True))
    assert_same(p, graph, apart)


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_taken_apart():
    graph, p, apart = start()
    for i, x in enumerate(batches(2)):
        graph.limits[0] = 400 if i % 2 else 3
        graph.step(x, lr=1e-2)
        eager(apart, x)
    assert_same(p, graph, apart)
    full, p, apart = start(capacity=3)  # fewer places than entries: what was left out is not missed
    for x in batches(2):
        full.step(x, lr=1e-2)
        eager(apart, x)
    assert_same(p, full, apart)


@pytest.mark.slow
@pytest.mark.parametrize("places", [2, 24])
def test_dead_latents_within_their_places_and_beyond(places):
    graph, p, apart = start(dead_capacity=places)
    for i, x in enumerate(batches(2)):
        dead = torch.arange(24) % 5 == i if i else torch.zeros(24, dtype=torch.bool)
        terms, expected = graph.step(x, dead, lr=1e-2), eager(apart, x, dead)
        torch.testing.assert_close(terms.ghost, expected.ghost, rtol=1e-5, atol=1e-9)
        assert bool(terms.ghost > 0) == bool(i)
    for name in PARAMETERS:
        torch.testing.assert_close(p[name], apart[0][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_products_and_moments():
    case = make_case(8, 8, 16, 24, bias=-1.0)
    p, apart = parameters(case), parameters(case)
    state, other = (pk.adam_init(t, moments=torch.bfloat16) for t in (p, apart))
    graph = pk.StepGraph(p, state, shape=SHAPE, capacity=400, l1=L1, eps=1e-4, precision="bf16")
    for x in batches(2):
        graph.step(x, lr=1e-2)
        eager((apart, other), x, precision="bf16")
    assert_same(p, graph, (apart, other))
    assert state.exp_avg["W_enc"].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", ["x", "parameter"])
def test_what_is_not_finite_changes_nothing(bad):
    graph, p, _ = start()
    x = batches(1)[0]
    if bad == "x":
        x[1, 3, 3] = float("inf")
    else:
        p["b_dec"][2] = float("nan")
    before = [t.clone() for t in (*p.values(), *graph.state.exp_avg.values())]
    with pytest.raises(ValueError if bad == "x" else (FloatingPointError, ValueError), match="row 7|finite|range"):
        graph.step(x, lr=1e-2)
    after = (*p.values(), *graph.state.exp_avg.values())
    assert all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(before, after, strict=True))
    assert graph.state.step == 0


@pytest.mark.slow
def test_weights_may_change_between_steps():
    graph, p, apart = start()
    for x in batches(2):
        for params in (p, apart[0]):
            params["W_enc"].mul_(1.5)
            params["b_enc"].sub_(0.1)
        graph.step(x, lr=1e-2)
        eager(apart, x)
    assert_same(p, graph, apart)


def test_nothing_is_read_in_what_is_recorded(monkeypatch):
    graph, _, _ = start(dead_capacity=12)
    graph.x.copy_(batches(1)[0])
    graph.controls.copy_(graph._controls(1e-2))
    reads = []
    for name in ("tolist", "item", "__bool__", "nonzero", "__int__", "__float__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name), name, reads))
    _, done = graph._run()
    assert reads == []
    assert done


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"shape is \(2, 4, 15\)"):
        start(shape=(2, 4, 15))
    with pytest.raises(ValueError, match="capacity is -1"):
        start(capacity=-1)
    graph, _, _ = start()
    with pytest.raises(ValueError, match=r"x has shape \(3, 4, 16\)"):
        graph.step(torch.zeros(3, 4, 16), lr=1e-2)

"""The optimiser's kernel in the interpreter, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import reference
from patchsae_kernels.calls import AdamCall
from patchsae_kernels.reference import training
from patchsae_kernels.triton import adam, pack
from patchsae_kernels.triton.launch import record
from tests.examples import examples
from tests.kernels.cases import make_case

shapes = st.tuples(st.integers(1, 12), st.integers(1, 40), st.sampled_from(["rows", "columns", "sliced"]))


def laid_out(shape, layout, g):
    rows, columns = shape
    if layout == "rows":
        return torch.randn(rows, columns, generator=g)
    if layout == "columns":
        return torch.randn(columns, rows, generator=g).t()
    return torch.randn(rows, columns + 3, generator=g)[:, 1 : columns + 1]


@given(shapes, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_it_is_the_reference_in_float64_for_any_strides(shape, unit_rows, same_layout, seed):
    g = torch.Generator().manual_seed(seed)
    *size, layout = shape
    p, m, v = (laid_out(size, layout, g) for _ in range(3))
    v.abs_()
    grad = laid_out(size, layout if same_layout else "rows", g)
    exact = [t.double() for t in (p, grad, m, v)]
    settings = (3, 0.01, 0.9, 0.999, 1e-8, unit_rows)
    kept, versions = grad.clone(), [t._version for t in (p, m, v)]
    torch.ops.patchsae.adam_step_(p, grad, m, v, *settings)
    reference.adam_step_(AdamCall(*exact, *settings))
    for ours, wanted in zip((p, m, v), (exact[0], exact[2], exact[3]), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(grad, kept)
    assert all(t._version > before for t, before in zip((p, m, v), versions, strict=True))


@pytest.mark.parametrize("width", [1, 15, 16, 300])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_rows_end_with_unit_norm(width, eps):
    g = torch.Generator().manual_seed(width)
    p, grad, m, v = (torch.randn(6, width, generator=g) for _ in range(4))
    v = v.square() + 0.1
    exact = [t.double() for t in (p, grad, m, v)]
    adam.adam_step_(AdamCall(p, grad, m, v, 7, 0.01, 0.8, 0.99, eps, True))
    reference.adam_step_(AdamCall(*exact, 7, 0.01, 0.8, 0.99, eps, True))
    torch.testing.assert_close(p.double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.norm(dim=1), torch.ones(6), rtol=1e-6, atol=1e-6)


def test_without_eps_nothing_outside_of_a_vector_is_touched():
    p, m, v = torch.ones(5), torch.zeros(5), torch.zeros(5)
    adam.adam_step_(AdamCall(p, torch.ones(5), m, v, 1, 0.1, 0.9, 0.999, 0.0, False))
    torch.testing.assert_close(p, torch.full((5,), 0.9))


def test_a_vector_of_several_programs(monkeypatch):
    monkeypatch.setattr(adam, "BLOCK", 16)
    g = torch.Generator().manual_seed(0)
    p, grad, m, v = (torch.randn(45, generator=g) for _ in range(4))
    v.abs_()
    exact = [t.double() for t in (p, grad, m, v)]
    adam.adam_step_(AdamCall(p, grad, m, v, 2, 0.1, 0.9, 0.999, 1e-8, False))
    reference.adam_step_(AdamCall(*exact, 2, 0.1, 0.9, 0.999, 1e-8, False))
    torch.testing.assert_close(p.double(), exact[0], rtol=1e-4, atol=1e-5)


def test_a_sliced_parameter_leaves_the_rest_alone():
    whole = torch.ones(6, 40)
    p = whole[:, 3:20]
    adam.adam_step_(
        AdamCall(p, torch.ones(6, 17), torch.zeros(6, 17), torch.zeros(6, 17), 1, 0.1, 0.9, 0.999, 1e-8, False)
    )
    assert (whole[:, :3] == 1).all()
    assert (whole[:, 20:] == 1).all()
    torch.testing.assert_close(p, torch.full((6, 17), 0.9))


def test_float64_and_bfloat16_are_the_reference_s():
    for dtype in (torch.float64, torch.bfloat16):
        tensors = [torch.ones(3, 4, dtype=dtype) for _ in range(4)]
        expected = [t.clone() for t in tensors]
        settings = (1, 0.1, 0.9, 0.999, 1e-8, True)
        assert not adam.serves(AdamCall(*tensors, *settings))
        torch.ops.patchsae.adam_step_(*tensors, *settings)
        reference.adam_step_(AdamCall(*expected, *settings))
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_the_host_code_touches_no_data():
    with record() as launches:
        rows = [torch.empty(50, 40, device="meta") for _ in range(4)]
        adam.adam_step_(AdamCall(*(t.t() for t in rows), 1, 0.1, 0.9, 0.999, 1e-8, False))
        adam.adam_step_(AdamCall(*rows, 1, 0.1, 0.9, 0.999, 1e-8, True))
    assert [launch.grid for launch in launches] == [(2,), (50,)]


def bits(t):
    return t.view(torch.int16).int()


@examples(15)
@given(shapes, st.booleans(), st.integers(0, 2**31))
def test_moments_in_bfloat16_are_the_reference_s(shape, unit_rows, seed):
    g = torch.Generator().manual_seed(seed)
    *size, layout = shape
    p, grad = laid_out(size, layout, g), laid_out(size, layout, g)
    m, v = (laid_out(size, layout, g).to(torch.bfloat16) for _ in range(2))
    v.abs_()
    expected = [t.clone(memory_format=torch.preserve_format) for t in (p, grad, m, v)]
    call = (3, 0.01, 0.9, 0.999, 1e-8, unit_rows, seed)
    torch.ops.patchsae.adam_step_(p, grad, m, v, *call)
    reference.adam_step_(AdamCall(*expected, *call))
    torch.testing.assert_close(p, expected[0], rtol=1e-4, atol=1e-5)
    for ours, wanted in ((m, expected[2]), (v, expected[3])):
        if layout != "sliced" or unit_rows:  # elsewhere the same places have the same noise
            assert (bits(ours) - bits(wanted)).abs().max() <= 1  # what is rounded may differ in its last bit
            assert (bits(ours) != bits(wanted)).float().mean() < 0.2 or ours.numel() < 50


def test_stochastic_rounding_is_unbiased_and_keeps_small_decays():
    p, v = torch.zeros(1, 4096), torch.full((1, 4096), 0.75).bfloat16()
    m = torch.zeros_like(v)
    for step in range(20):  # plain rounding to bfloat16 would leave 0.75 alone
        adam.adam_step_(AdamCall(p, torch.zeros_like(p), m, v, step + 1, 0.1, 0.9, 0.999, 1e-8, False, step))
    torch.testing.assert_close(
        v.double().mean(), torch.tensor(0.75 * 0.999**20, dtype=torch.float64), rtol=3e-4, atol=0
    )


def test_noise_follows_the_seed_and_the_place():
    x = torch.full((4096,), 1 + 2.0**-9)  # a quarter of the way to the next bfloat16
    noise = training._noise(x, 1)
    assert torch.equal(noise, training._noise(x, 1))
    assert (noise != training._noise(x, 2)).float().mean() > 0.99
    up = reference.round_stochastically(x, noise & 0xFFFF) > 1
    assert abs(float(up.float().mean()) - 0.25) < 0.03


def parameters(case):
    return {
        n: getattr(case, n).clone(memory_format=torch.preserve_format) for n in ("W_enc", "b_enc", "W_dec", "b_dec")
    }


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize(("width", "latents"), [(20, 37), (64, 64), (130, 32)])
def test_the_encoder_is_packed_in_the_same_pass(precision, width, latents):
    case = make_case(0, 9, width, latents)
    p, apart = parameters(case), parameters(case)
    prepared = pk.prepare(p["W_enc"], p["b_enc"], p["b_dec"])
    prepared.packed(precision)
    state, other = pk.adam_init(p), pk.adam_init(apart)
    for step in range(3):
        _, grads = pk.sae_step(case.x, p, l1=0.1, prepared=prepared, precision=precision)
        for t in grads.values():
            t.mul_(1 + step)
        pk.adam_step(p, grads, state, lr=0.3, prepared=prepared)  # so large that tau has to follow
        pk.adam_step(apart, grads, other, lr=0.3)
        assert all(torch.equal(p[n], apart[n]) for n in p)
    held, fresh = pack.Packed(*prepared.packed(precision)), pack.pack(p["W_enc"], p["b_enc"], precision)
    factor = (held.tau / fresh.tau).log2()
    assert torch.equal(factor, factor.round())  # of the weights one step ago, a power of two
    torch.testing.assert_close(held.next_tau, fresh.tau)
    torch.testing.assert_close(held.low.float() / held.tau, fresh.low.float() / fresh.tau, rtol=2**-10, atol=2**-14)
    assert torch.equal(held.bias, fresh.bias)
    lost = (held.rows - (held.low.float() / held.tau)[:latents, :width]).norm(dim=1)
    assert (held.terms[1, :latents] >= lost * held.tau).all()  # a bound, whatever tau is
    assert (held.terms[0, :latents] >= held.rows.norm(dim=1) * held.tau).all()
    buckets = torch.cat(
        [held.terms, torch.nn.functional.pad(p["b_enc"].abs(), (0, held.terms.shape[1] - latents))[None]]
    )
    assert torch.equal(held.bucket_terms, buckets.view(3, -1, 32).amax(2))


def test_a_stale_or_foreign_packing_is_not_taken():
    case = make_case(0, 9, 20, 37)
    p = parameters(case)
    prepared = pk.prepare(p["W_enc"], p["b_enc"], p["b_dec"])
    prepared.packed("exact")
    p["W_enc"].mul_(2)
    assert prepared.packed_in_place() is None
    _, grads = pk.sae_step(case.x, p, l1=0.1, prepared=prepared)
    pk.adam_step(p, grads, pk.adam_init(p), lr=0.1, prepared=prepared)
    encoded = pk.encode(case.x, prepared)
    assert torch.equal(encoded.values, pk.encode(case.x, p["W_enc"], p["b_enc"], p["b_dec"]).values)
    with pytest.raises(ValueError, match="other tensors"):
        pk.sae_step(case.x, parameters(case), l1=0.1, prepared=prepared)


def test_a_control_of_zero_leaves_everything_alone():
    tensors = [torch.ones(3, 4) for _ in range(4)]
    for go, changed in ((0, False), (1, True)):
        control = adam.control_of(1, 0.1, 0.9, 0.999, 0)
        control[2] = go
        adam.adam_with(adam.Extras(control=control), AdamCall(*tensors, 9, 9.0, 0.9, 0.999, 1e-8, False))
        assert bool((tensors[0] != 1).any()) == changed
    expected = [torch.ones(3, 4) for _ in range(4)]
    adam.adam_step_(AdamCall(*expected, 1, 0.1, 0.9, 0.999, 1e-8, False))
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))

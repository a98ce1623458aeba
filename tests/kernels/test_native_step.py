"""The native training step, its gradients by latent and Adam, against float64 and against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import cpu, reference
from patchsae_kernels.calls import AdamCall, DecodeBackwardCall, EncodeBackwardCall
from patchsae_kernels.cpu import step as native_step
from patchsae_kernels.cpu.extension import levels, native
from patchsae_kernels.cpu.ghost import Rows
from patchsae_kernels.cpu.product import product
from tests.kernels.cases import Case, cases, make_case, random_latents
from tests.training.dense_loss import dense_gradients

pytestmark = pytest.mark.skipif(not cpu.available, reason=f"the extension is not here: {cpu.missing}")
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
DENSE_FROM = native_step.DENSE_FROM
OPS = torch.ops.patchsae
BUDGET = 2**28


@pytest.fixture(autouse=True)
def never_dense(monkeypatch):
    """Small cases have many active latents; here they take the sparse path all the same."""
    monkeypatch.setattr(native_step, "DENSE_FROM", 2.0)


@pytest.fixture(params=levels())
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


def parameters(case):
    return {name: getattr(case, name).clone(memory_format=torch.preserve_format) for name in PARAMETERS}


def away_from_zero(case):
    """The case with pre-activations that float32 and float64 put on the same side of zero."""
    pre = case.double().pre()
    return bool((pre.abs() > 1e-5).all())


@st.composite
def steps(draw):
    case = draw(cases(min_n=1).filter(away_from_zero))
    tokens = draw(st.sampled_from([t for t in range(1, case.x.shape[0] + 1) if case.x.shape[0] % t == 0]))
    x = case.x.view(-1, tokens, case.x.shape[1])
    dead = torch.tensor(draw(st.lists(st.booleans(), min_size=case.b_enc.shape[0], max_size=case.b_enc.shape[0])))
    weight, budget = draw(st.sampled_from([1.0, 0.0, 2.5])), draw(st.sampled_from([256, 0.003]))
    return case, x, dead, draw(st.booleans()), weight, budget


def assert_close_step(terms, grads, exact, exact_grads, tolerance):
    for name in ("total", "mse", "l1", "ghost", "l0", "squared_error"):
        torch.testing.assert_close(getattr(terms, name).double(), getattr(exact, name), rtol=tolerance, atol=1e-6)
    for name in PARAMETERS:
        scale = exact_grads[name].abs().max() + 1e-6
        assert (grads[name].double() - exact_grads[name]).abs().max() <= tolerance * scale, name


@given(steps())
def test_terms_and_gradients_are_those_of_the_dense_formula_in_float64(step):
    case, x, dead, ghost, cls_weight, budget_mb = step
    settings = {"l1": 0.03, "dead": dead, "ghost": ghost, "cls_weight": cls_weight}
    terms, grads = pk.sae_step(x, parameters(case), **settings, budget_mb=budget_mb)
    exact, exact_grads = dense_gradients(x, parameters(case), **settings)
    assert_close_step(terms, grads, exact, exact_grads, 1e-3 if ghost else 2e-5)  # ghost divides by differences
    assert torch.equal(terms.fired, exact.active.flatten(0, -2).any(0))
    for name in PARAMETERS:
        assert grads[name].stride() == getattr(case, name).stride()


@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize("width", [8, 16, 100, 400, 768])
def test_every_level_agrees_with_float64(level, ghost, width):
    case = make_case(1, 30, width, 150, bias=-1.0)
    dead = torch.arange(150) % 7 == 0
    x = case.x.view(6, 5, width)
    settings = {"l1": 1e-3, "dead": dead, "ghost": ghost, "cls_weight": 2.0}
    terms, grads = pk.sae_step(x, parameters(case), **settings)
    assert_close_step(terms, grads, *dense_gradients(x, parameters(case), **settings), 1e-3 if ghost else 1e-5)


@pytest.mark.parametrize("tokens", [37, 400])
def test_threads_change_no_bit(with_threads, level, tokens):
    case = make_case(2, tokens, 40, 300, bias=-0.7)
    results = []
    for threads in (1, 2, 3, 4):
        with_threads(threads)
        p = parameters(case)
        terms, grads = pk.sae_step(case.x, p, l1=0.1, dead=torch.arange(300) % 3 == 0)
        state = pk.adam_init(p)
        pk.adam_step(p, grads, state, lr=0.01)
        results.append([*terms, *grads.values(), *p.values(), *state.exp_avg_sq.values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_cut_of_the_tokens_changes_no_bit():
    case = make_case(3, 60, 24, 90)
    case = Case(*((4 * t).round() / 4 for t in case))  # pre-activations without rounding: encode is not what is tested
    whole, grads = pk.sae_step(case.x.view(6, 10, 24), parameters(case), l1=0.1, cls_weight=3.0)
    cut, cut_grads = pk.sae_step(case.x.view(6, 10, 24), parameters(case), l1=0.1, cls_weight=3.0, budget_mb=0.02)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    assert all(torch.equal(grads[name], cut_grads[name]) for name in PARAMETERS)


@pytest.mark.parametrize("budget_mb", [256, 0.01])
def test_ghost_in_parts_is_the_reference(budget_mb):
    case = make_case(4, 24, 12, 80, bias=-2.0)
    dead = torch.arange(80) % 3 > 0
    settings = {"l1": 0.1, "dead": dead, "cls_weight": 1.5}
    terms, grads = pk.sae_step(case.x.view(4, 6, 12), parameters(case), **settings, budget_mb=budget_mb)
    exact = dense_gradients(case.x.view(4, 6, 12), parameters(case), **settings, ghost=True)
    assert terms.ghost > 0
    assert_close_step(terms, grads, *exact, 1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 0, 5), (13, 300, 70), (100, 20, 64), (3, 513, 200)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_product_at_every_level(level, shape, turned):
    rows, depth, columns = shape
    g = torch.Generator().manual_seed(0)
    a = torch.randn(depth, rows, generator=g).t() if turned else torch.randn(rows, depth, generator=g)
    b = torch.randn(depth, columns, generator=g)
    c = product(a, b)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(product(a, b, into=c.clone()), 2 * c, rtol=1e-4, atol=1e-4)


def test_no_tokens_no_gradient():
    case = make_case(0, 0, 20, 30)
    for x in (case.x, case.x.view(0, 5, 20)):
        terms, grads = pk.sae_step(x, parameters(case), l1=0.1, dead=torch.ones(30, dtype=torch.bool))
        assert terms.total == 0
        assert not terms.fired.any()
        assert all((grads[name] == 0).all() for name in PARAMETERS)


def test_latents_that_nobody_fires_have_zero_gradients_even_in_memory_that_was_used():
    case = make_case(5, 8, 32, 64)
    p = parameters(case)
    p["b_enc"][10:50] = -100.0
    for _ in range(3):  # the allocator hands out the blocks of the previous round, here full of ones
        terms, grads = pk.sae_step(case.x, p, l1=0.1)
        assert not terms.fired[10:50].any()
        for gradient in (grads["W_enc"].t(), grads["b_enc"], grads["W_dec"]):
            assert (gradient[10:50] == 0).all()
        for gradient in grads.values():
            gradient.fill_(1.0)
        del terms, grads, gradient


def test_dense_and_sparse_agree(monkeypatch):
    case = make_case(6, 40, 32, 128, bias=0.0)
    sparse, sparse_grads = pk.sae_step(case.x, parameters(case), l1=0.1)
    called = []
    dense_step = reference.sae_step
    monkeypatch.setattr(reference, "sae_step", lambda call: called.append(1) or dense_step(call))
    monkeypatch.setattr(native_step, "DENSE_FROM", 0.1)
    dense, dense_grads = pk.sae_step(case.x, parameters(case), l1=0.1)
    assert called
    torch.testing.assert_close(sparse[:6], dense[:6], rtol=1e-5, atol=0)
    for name in PARAMETERS:
        assert (sparse_grads[name] - dense_grads[name]).abs().max() <= 1e-5 * dense_grads[name].abs().max()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_that_is_no_number_is_seen_in_the_total_or_the_gradients(name):
    case = make_case(7, 6, 8, 20)
    p = parameters(case)
    p["b_enc"][0] = 5.0  # latent 0 is active
    p[name][(0,) * p[name].dim()] = float("nan")
    terms, grads = pk.sae_step(case.x, p, l1=0.1)
    assert not torch.stack([terms.total, *(g.sum() for g in grads.values())]).isfinite().all()


def test_a_token_that_is_no_number_is_named():
    case = make_case(7, 9, 8, 20)
    case.x[6, 2] = float("inf")
    with pytest.raises(ValueError, match="row 6"):
        pk.sae_step(case.x, parameters(case), l1=0.1)


def test_ten_steps_of_training_are_ten_steps_of_the_reference(monkeypatch):
    case = make_case(8, 60, 32, 200, bias=-1.0)
    dead = torch.arange(200) < 20
    trained = []
    for native_runs in (True, False):
        p = parameters(case) if native_runs else {n: t.double() for n, t in parameters(case).items()}
        state = pk.adam_init(p)
        g = torch.Generator().manual_seed(0)
        for _ in range(10):
            x = torch.randn(6, 10, 32, generator=g).to(p["b_dec"].dtype)
            _, grads = pk.sae_step(x, p, l1=1e-3, dead=dead, ghost=False, cls_weight=2.0)
            pk.adam_step(p, grads, state, lr=1e-3, eps=1e-4)  # at 1e-8 a gradient near 0 moves by its sign
        trained.append(p)
    for name in PARAMETERS:
        ours, exact = trained[0][name].double(), trained[1][name]
        assert (ours - exact).norm() <= 1e-5 * exact.norm()


adam_shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["rows", "columns", "sliced"]))


def laid_out(shape, layout, g):
    rows, columns = shape
    if layout == "rows":
        return torch.randn(rows, columns, generator=g)
    if layout == "columns":
        return torch.randn(columns, rows, generator=g).t()
    return torch.randn(rows, columns + 3, generator=g)[:, 1 : columns + 1]


@given(adam_shapes, st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_adam_is_the_reference_in_float64_for_any_strides(shape, unit_rows, same_layout, seed):
    g = torch.Generator().manual_seed(seed)
    *size, layout = shape
    p, m, v = (laid_out(size, layout, g) for _ in range(3))
    v.abs_()
    grad = laid_out(size, layout if same_layout else "rows", g)
    exact = [t.double() for t in (p, grad, m, v)]
    settings = (3, 0.01, 0.9, 0.999, 1e-8, unit_rows)
    kept = grad.clone()
    OPS.adam_step_(p, grad, m, v, *settings)
    reference.adam_step_(AdamCall(*exact, *settings))
    for ours, wanted in zip((p, m, v), (exact[0], exact[2], exact[3]), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(grad, kept)


@pytest.mark.parametrize("width", [1, 15, 16, 100, 768])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_adam_at_every_level(level, width, eps):
    g = torch.Generator().manual_seed(width)
    p, grad, m, v = (torch.randn(50, width, generator=g) for _ in range(4))
    v = v.square() + 0.1
    exact = [t.double() for t in (p, grad, m, v)]
    OPS.adam_step_(p, grad, m, v, 7, 0.01, 0.8, 0.99, eps, True)
    reference.adam_step_(AdamCall(*exact, 7, 0.01, 0.8, 0.99, eps, True))
    torch.testing.assert_close(p.double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.norm(dim=1), torch.ones(50), rtol=1e-6, atol=1e-6)


def test_adam_on_a_sliced_parameter_leaves_the_rest_alone():
    whole = torch.ones(6, 40)
    p = whole[:, 3:20]
    OPS.adam_step_(p, torch.ones(6, 17), torch.zeros(6, 17), torch.zeros(6, 17), 1, 0.1, 0.9, 0.999, 1e-8, False)
    assert (whole[:, :3] == 1).all()
    assert (whole[:, 20:] == 1).all()
    torch.testing.assert_close(p, torch.full((6, 17), 0.9))


def test_prepared_weights_notice_a_native_adam_step():
    case = make_case(0, 4, 8, 20)
    p = parameters(case)
    weights = pk.prepare(p["W_enc"], p["b_enc"], p["b_dec"])
    before = pk.encode(case.x, weights)
    pk.adam_step(p, {name: torch.ones_like(t) for name, t in p.items()}, pk.adam_init(p), lr=0.5)
    after = pk.encode(case.x, weights)
    expected = case._replace(**p).encode()
    assert not torch.equal(before.to_dense(), after.to_dense())
    assert torch.equal(after.to_dense(), expected.to_dense())


@given(
    st.integers(0, 12), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 2**31)
)
def test_backwards_are_the_reference_in_float64(n, d, s, density, seed):
    z, case = random_latents(seed, n, s, density), make_case(seed, n, d, s)
    csr = (z.values, z.indices, z.indptr)
    ours = OPS.decode_backward(case.x, *csr, case.W_dec, BUDGET)
    exact = reference.decode_backward(
        DecodeBackwardCall(case.x.double(), z.values.double(), z.indices, z.indptr, case.W_dec.double(), BUDGET)
    )
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    ours = OPS.encode_backward(*csr, case.x, case.W_enc, case.b_dec)
    exact = reference.encode_backward(
        EncodeBackwardCall(
            z.values.double(), z.indices, z.indptr, case.x.double(), case.W_enc.double(), case.b_dec.double()
        )
    )
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
        assert a.shape == b.shape


def test_backwards_of_unsorted_rows_and_of_rows_that_repeat_a_latent():
    values, indices = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2, 0, 1, 1], dtype=torch.int32)
    indptr, g, W = torch.tensor([0, 2, 4]), torch.randn(2, 5), torch.randn(3, 5)
    ours = OPS.decode_backward(g, values, indices, indptr, W, BUDGET)
    for a, b in zip(
        ours, reference.decode_backward(DecodeBackwardCall(g, values, indices, indptr, W, BUDGET)), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("index", [-1, 30])
def test_an_index_outside_of_the_latents_is_an_error(index):
    z, case = random_latents(0, 5, 30), make_case(0, 5, 8, 30)
    z.indices[-1] = index
    with pytest.raises(ValueError, match="indices reach"):
        OPS.decode_backward(case.x, z.values, z.indices, z.indptr, case.W_dec, BUDGET)
    with pytest.raises(ValueError, match="indices reach"):
        OPS.encode_backward(z.values, z.indices, z.indptr, case.x, case.W_enc, case.b_dec)


def test_threads_change_no_bit_of_the_backwards(with_threads):
    z, case = random_latents(0, 300, 80), make_case(0, 300, 40, 80)
    results = []
    for threads in (1, 2, 3, 4):
        with_threads(threads)
        csr = (z.values, z.indices, z.indptr)
        decoded = OPS.decode_backward(case.x, *csr, case.W_dec, BUDGET)
        results.append([*decoded, *OPS.encode_backward(*csr, case.x, case.W_enc, case.b_dec)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bias", [-0.5, -100.0])
def test_the_backward_of_float32_is_the_slope_of_float64_by_finite_differences(bias):
    case = make_case(9, 7, 10, 25, bias=bias)
    leaves = [getattr(case, n).clone(memory_format=torch.preserve_format).requires_grad_() for n in PARAMETERS]

    def loss(x, W_enc, b_enc, W_dec, b_dec):
        z = pk.encode(x, W_enc, b_enc, b_dec)
        return pk.decode(z, W_dec, b_dec).square().mean()

    loss(case.x, *leaves).backward()
    g = torch.Generator().manual_seed(0)
    for leaf in leaves:
        direction = torch.randn(leaf.shape, generator=g, dtype=torch.float64)
        shifted = [
            loss(case.x.double(), *(t.detach().double() + (h * direction if t is leaf else 0) for t in leaves))
            for h in (1e-6, -1e-6)
        ]
        slope = (shifted[0] - shifted[1]) / 2e-6
        torch.testing.assert_close((leaf.grad.double() * direction).sum(), slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("bias", "dense"), [(0.0, True), (-3.0, False)])
def test_half_of_all_latents_is_above_the_crossover_and_one_in_a_hundred_below(bias, dense):
    case = make_case(0, 50, 16, 400, bias=bias)
    rows = Rows(case.W_enc.t().contiguous(), case.b_enc, case.W_dec)
    assert (native_step._share_of_active(case.x, rows, case.b_dec) > DENSE_FROM) == dense

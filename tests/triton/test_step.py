"""The training step in the interpreter, through the public ops, against the dense formula in float64."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels import reference
from patchsae_kernels.calls import StepCall
from patchsae_kernels.triton import backward, dense, latent_major, step, tuning
from patchsae_kernels.triton.ghost import Dead
from patchsae_kernels.triton.launch import record
from tests.examples import examples
from tests.kernels.cases import Case, cases, make_case
from tests.training.dense_loss import dense_gradients

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
PATHS = ("sparse", "dense")
NEVER, ALWAYS = 2.0, -1.0
SCALARS = ("total", "mse", "l1", "ghost", "l0", "squared_error")
few = examples(8)


@pytest.fixture(params=PATHS)
def path(request):
    with choosing(request.param):
        yield request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Long latents, and several blocks and programs in the dense passes."""
    for module in (latent_major, backward):
        monkeypatch.setattr(module, "SEGMENT", 3)
    monkeypatch.setattr(dense, "RELU_BLOCK", 16)
    monkeypatch.setattr(dense, "GATE_BLOCK", 16)
    monkeypatch.setattr(step, "TILE", 4)


@contextmanager
def choosing(name):
    with pytest.MonkeyPatch.context() as patch:
        limit = NEVER if name == "sparse" else ALWAYS
        patch.setattr(tuning, "DENSE_FROM", dict.fromkeys(tuning.DENSE_FROM, limit))
        yield


def parameters(case):
    return {name: getattr(case, name).clone(memory_format=torch.preserve_format) for name in PARAMETERS}


def away_from_zero(case):
    """The case with pre-activations that float32 and float64 put on the same side of zero."""
    return bool((case.double().pre().abs() > 1e-5).all())


def assert_close_step(terms, grads, exact, exact_grads, tolerance):
    for name in SCALARS:
        torch.testing.assert_close(getattr(terms, name).double(), getattr(exact, name), rtol=tolerance, atol=1e-6)
    for name in PARAMETERS:
        scale = exact_grads[name].abs().max() + 1e-6
        assert (grads[name].double() - exact_grads[name]).abs().max() <= tolerance * scale, name


@st.composite
def steps(draw):
    case = draw(cases(min_n=1).filter(away_from_zero))
    tokens = draw(st.sampled_from([t for t in range(1, case.x.shape[0] + 1) if case.x.shape[0] % t == 0]))
    x = case.x.view(-1, tokens, case.x.shape[1])
    dead = torch.tensor(draw(st.lists(st.booleans(), min_size=case.b_enc.shape[0], max_size=case.b_enc.shape[0])))
    weight, budget = draw(st.sampled_from([1.0, 0.0, 2.5])), draw(st.sampled_from([256, 0.003]))
    return case, x, dead, draw(st.booleans()), weight, budget


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
@few
@given(steps())
def test_terms_and_gradients_are_those_of_the_dense_formula_in_float64(name, drawn):
    case, x, dead, ghost, cls_weight, budget_mb = drawn
    options = {"l1": 0.03, "dead": dead, "ghost": ghost, "cls_weight": cls_weight}
    with choosing(name):
        terms, grads = pk.sae_step(x, parameters(case), **options, budget_mb=budget_mb)
    exact, exact_grads = dense_gradients(x, parameters(case), **options)
    assert_close_step(terms, grads, exact, exact_grads, 1e-3 if ghost else 2e-5)  # ghost divides by differences
    assert torch.equal(terms.fired, exact.active.flatten(0, -2).any(0))
    for parameter in PARAMETERS:
        assert grads[parameter].stride() == getattr(case, parameter).stride()


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize("width", [8, 40])
def test_long_latents_and_several_blocks(path, ghost, width):
    case = make_case(1, 20, width, 40, bias=-0.3)
    case.b_enc[4] = 6.0  # active on nearly every token
    dead = torch.arange(40) % 7 == 0
    x = case.x.view(4, 5, width)
    options = {"l1": 1e-3, "dead": dead, "ghost": ghost, "cls_weight": 2.0}
    terms, grads = pk.sae_step(x, parameters(case), **options)
    assert_close_step(terms, grads, *dense_gradients(x, parameters(case), **options), 1e-3 if ghost else 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_chunks_change_no_more_than_rounding(path):
    case = make_case(3, 24, 24, 40)
    options = {"l1": 0.1, "cls_weight": 3.0, "dead": torch.arange(40) % 5 == 0}
    x = case.x.view(4, 6, 24)
    whole, grads = pk.sae_step(x, parameters(case), **options)
    cut, cut_grads = pk.sae_step(x, parameters(case), **options, budget_mb=0.004)
    torch.testing.assert_close(whole[:6], cut[:6], rtol=1e-5, atol=1e-7)
    assert torch.equal(whole.fired, cut.fired)
    for name in PARAMETERS:
        torch.testing.assert_close(cut_grads[name], grads[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_ghost_in_parts_is_the_dense_formula(path):
    case = make_case(4, 24, 12, 60, bias=-2.0)
    x, options = case.x.view(4, 6, 12), {"l1": 0.1, "dead": torch.arange(60) % 3 > 0, "cls_weight": 1.5}
    exact, exact_grads = dense_gradients(x, parameters(case), **options, ghost=True)
    _, plain_grads = dense_gradients(x, parameters(case), **options, ghost=False)
    for budget_mb in (256, 0.003):
        terms, grads = pk.sae_step(x, parameters(case), **options, budget_mb=budget_mb)
        assert terms.ghost > 0
        assert_close_step(terms, grads, exact, exact_grads, 1e-3)
        for name in ("W_enc", "b_enc", "W_dec"):  # the term's own gradient, not lost beside the others
            own, wanted = grads[name].double() - plain_grads[name], exact_grads[name] - plain_grads[name]
            assert (own - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.slow
def test_the_same_bits_again(path):
    case = make_case(2, 20, 16, 50)
    results = []
    for _ in range(2):
        p = parameters(case)
        terms, grads = pk.sae_step(case.x, p, l1=0.1, dead=torch.arange(50) % 3 == 0)
        state = pk.adam_init(p)
        pk.adam_step(p, grads, state, lr=0.01)
        results.append([*terms, *grads.values(), *p.values(), *state.exp_avg_sq.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
def test_dense_and_sparse_agree():
    case = make_case(6, 40, 32, 64, bias=0.0)
    found = []
    for name in PATHS:
        with choosing(name):
            found.append(pk.sae_step(case.x, parameters(case), l1=0.1))
    (sparse, sparse_grads), (dense_, dense_grads) = found
    torch.testing.assert_close(sparse[:6], dense_[:6], rtol=1e-5, atol=0)
    for name in PARAMETERS:
        assert (sparse_grads[name] - dense_grads[name]).abs().max() <= 1e-5 * dense_grads[name].abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("ghost", [False, True])
def test_bfloat16_products_are_those_of_the_reference(path, ghost):
    """float32 sums of rounded operands; the interpreter cuts bits off where a GPU rounds, twice the error."""
    width = 1 if ghost else 24  # wider, the ghost term divides by squares of differences that are near 0 somewhere
    case = make_case(3, 24, width, 40)
    dead = torch.arange(40) % 5 == 0
    x, options = case.x.view(4, 6, width), {"l1": 0.1, "cls_weight": 3.0, "dead": dead, "ghost": ghost}
    terms, grads = pk.sae_step(x, parameters(case), **options, precision="bf16")
    exact, exact_grads = dense_gradients(x, parameters(case), **options)
    for name in SCALARS:
        torch.testing.assert_close(getattr(terms, name).double(), getattr(exact, name), rtol=0.03, atol=1e-6)
    for name in PARAMETERS:
        error = (grads[name].double() - exact_grads[name]).norm() / exact_grads[name].norm()
        assert error < 0.05, name
    assert all(t.dtype == torch.float32 for t in (*terms[:6], *grads.values()))
    assert any(not torch.equal(grads[n], pk.sae_step(x, parameters(case), **options)[1][n]) for n in PARAMETERS)


def test_the_reference_rounds_the_operands_of_its_products():
    case = make_case(3, 24, 24, 40).double()
    w = [getattr(case, name) for name in PARAMETERS]
    rounded = reference.sae_step(StepCall(case.x, *w, None, 0.1, 1.0, 0, 2**28, "bf16"))
    exact = reference.sae_step(StepCall(case.x, *w, None, 0.1, 1.0, 0, 2**28))
    for ours, wanted in zip(rounded[7:], exact[7:], strict=True):
        assert 1e-5 < (ours - wanted).norm() / wanted.norm() < 0.02


def test_a_run_turns_sparse_once_and_does_not_waver(monkeypatch):
    monkeypatch.setattr(tuning, "dense_from", lambda precision: 0.1)
    choice, taken = pk.StepChoice(), []
    for share in (0.5, 0.5, *[0.09] * 12, *[0.07] * 8, *[0.11] * 8, *[0.2] * 8):
        taken.append(choice.next("exact")[1])
        choice.update(torch.tensor(share * 40), 40)
    changes = [b for a, b in itertools.pairwise(taken) if a != b]
    assert taken[0] == ""
    assert changes == ["dense", "sparse", "dense"]  # at 0.07, not at 0.09; at 0.2, not at 0.11


@pytest.mark.slow
def test_a_choice_changes_nothing_but_rounding(monkeypatch):
    monkeypatch.setattr(tuning, "dense_from", lambda precision: 0.2)
    case, choice = make_case(6, 40, 32, 64, bias=-0.6), pk.StepChoice()
    for dense_before in (None, True, False, True):
        if dense_before is not None:
            choice.share = torch.tensor(0.5 if dense_before else 0.01)
        terms, grads = pk.sae_step(case.x, parameters(case), l1=0.1, choice=choice)
        expected, expected_grads = pk.sae_step(case.x, parameters(case), l1=0.1)
        torch.testing.assert_close(terms[:6], expected[:6], rtol=1e-5, atol=0)
        assert torch.equal(terms.fired, expected.fired)
        for name in PARAMETERS:
            assert (grads[name] - expected_grads[name]).abs().max() <= 1e-5 * expected_grads[name].abs().max()


def test_a_token_that_is_no_number_is_named_after_a_choice():
    case = make_case(7, 9, 8, 20)
    case.x[6, 2] = float("inf")
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="row 6"):
            pk.sae_step(case.x, parameters(case), l1=0.1, choice=pk.StepChoice(torch.tensor(share)))


@pytest.mark.parametrize(("bias", "dense_expected"), [(0.0, True), (-5.0, False)])
def test_the_choice_follows_the_share_of_active_latents(monkeypatch, bias, dense_expected):
    case, taken = make_case(0, 50, 16, 200, bias=bias), []
    relu = dense.relu
    monkeypatch.setattr(dense, "relu", lambda *a: taken.append(1) or relu(*a))
    pk.sae_step(case.x, parameters(case), l1=0.1)
    assert bool(taken) == dense_expected


def test_no_tokens_no_gradient(path):
    case = make_case(0, 0, 20, 30)
    for x in (case.x, case.x.view(0, 5, 20)):
        terms, grads = pk.sae_step(x, parameters(case), l1=0.1, dead=torch.ones(30, dtype=torch.bool))
        assert terms.total == 0
        assert not terms.fired.any()
        assert all((grads[name] == 0).all() for name in PARAMETERS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "latent"),  # the dictionary row of latent 1, which is not active, is not read
    [("W_enc", 0), ("W_enc", 1), ("b_enc", 0), ("b_enc", 1), ("W_dec", 0), ("b_dec", 0)],
)
def test_a_parameter_that_is_no_number_is_seen_in_the_total_or_the_gradients(path, name, bad, latent):
    case = make_case(7, 6, 8, 20)
    p = parameters(case)
    p["b_enc"][0] = 5.0  # latent 0 is active
    p["b_enc"][1] = -50.0  # latent 1 is not
    place = (latent,) if p[name].dim() == 1 else (0, latent) if name == "W_enc" else (latent, 0)
    p[name][place] = bad
    terms, grads = pk.sae_step(case.x, p, l1=0.1)
    assert not torch.stack([terms.total, *(g.sum() for g in grads.values())]).isfinite().all()


def test_a_token_that_is_no_number_is_named(path):
    case = make_case(7, 9, 8, 20)
    case.x[6, 2] = float("inf")
    with pytest.raises(ValueError, match="row 6"):
        pk.sae_step(case.x, parameters(case), l1=0.1)


def test_a_token_reconstructed_without_error_has_no_ghost_term(path):
    case = make_case(0, 2, 4, 6, bias=-50.0)
    p = parameters(case)
    terms, grads = pk.sae_step(p["b_dec"].repeat(3, 1), p, l1=0.1, dead=torch.ones(6, dtype=torch.bool))
    assert terms.ghost == 0
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_any_layout_of_the_parameters(path):
    case = make_case(5, 12, 10, 30)
    terms, grads = pk.sae_step(case.x, parameters(case), l1=0.1)
    turned = {**parameters(case), "W_enc": case.W_enc.contiguous(), "W_dec": case.W_dec.t().contiguous().t()}
    same_terms, same = pk.sae_step(case.x.t().contiguous().t(), turned, l1=0.1)
    assert torch.equal(terms.total, same_terms.total)
    for name in PARAMETERS:
        assert torch.equal(same[name], grads[name])
        assert same[name].stride() == turned[name].stride()


def test_float64_is_the_reference_s():
    case = make_case(5, 6, 5, 9).double()
    terms, _ = pk.sae_step(case.x, parameters(case), l1=0.1)
    expected = reference.sae_step(
        StepCall(*case[:1], *(getattr(case, n) for n in PARAMETERS), None, 0.1, 1.0, 0, 2**28)
    )
    assert torch.equal(terms.total, expected[0])


@pytest.mark.slow
def test_ten_steps_of_training_are_ten_dense_steps(path):
    case = make_case(8, 40, 16, 60, bias=-1.0)
    dead = torch.arange(60) < 8
    trained = []
    for ours in (True, False):
        p = parameters(case) if ours else {n: t.double() for n, t in parameters(case).items()}
        state = pk.adam_init(p)
        prepared = pk.prepare(p["W_enc"], p["b_enc"], p["b_dec"]) if ours else None
        g = torch.Generator().manual_seed(0)
        for _ in range(10):
            x = torch.randn(2, 10, 16, generator=g).to(p["b_dec"].dtype)
            _, grads = pk.sae_step(x, p, l1=1e-3, dead=dead, ghost=False, cls_weight=2.0, prepared=prepared)
            # with eps at 1e-8 a gradient near 0 moves a parameter by its sign
            pk.adam_step(p, grads, state, lr=1e-3, eps=1e-4, prepared=prepared)
        trained.append(p)
    for name in PARAMETERS:
        ours, exact = trained[0][name].double(), trained[1][name]
        assert (ours - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"activation": "topk", "k": 4}, {"activation": "batchtopk", "k": 4}, "jumprelu"]
)
def test_gradients_through_autograd_are_those_of_float64(options):
    """The loss of a public encode and decode, as code that is not `sae_step` trains with it."""
    case = make_case(9, 7, 10, 25)
    if options == "jumprelu":
        options = {"activation": "jumprelu", "threshold": torch.linspace(0, 0.5, 25)}
    grads = []
    for exact in (False, True):
        c = case.double() if exact else case
        leaves = Case(*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in c))
        z = leaves.encode(**options)
        if exact:
            active = torch.zeros(7, 25, dtype=torch.bool).index_put_((z.rows(), z.indices.long()), torch.tensor(True))
            y = torch.where(active, leaves.pre(), 0) @ leaves.W_dec + leaves.b_dec
        else:
            y = pk.decode(z, leaves.W_dec, leaves.b_dec)
        y.sigmoid().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_choice_and_the_encode_are_all_that_is_read(monkeypatch):
    case, reads = make_case(2, 20, 16, 50, bias=-3.0), []
    for name in ("tolist", "item", "__bool__", "nonzero", "__int__", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, counting(original, name, reads))
    pk.sae_step(case.x, parameters(case), l1=0.1)
    assert reads == ["tolist", "tolist"]
    reads.clear()
    pk.sae_step(case.x, parameters(case), l1=0.1, choice=pk.StepChoice(torch.tensor(0.01)))
    assert reads == ["__float__", "tolist"]


def counting(original, name, reads):
    def counted(self, *args, **kwargs):
        reads.append(name)
        return original(self, *args, **kwargs)

    return counted


def meta(*shape, dtype=torch.float32):
    """Said with every tensor: `poisoned_memory` may hide torch.empty from ``with torch.device("meta")``."""
    return torch.empty(shape, dtype=dtype, device="meta")


def test_the_host_code_touches_no_data():
    with record() as launches:
        x, W, b, b_dec = meta(40, 16), meta(700, 16), meta(700), meta(16)
        dead = Dead(meta(30, dtype=torch.int64))
        held = step.Step(StepCall(x, W.t(), b, W, b_dec, None, 0.1, 2.0, 4, 2**28), dead)
        held.add_sparse(slice(0, 40), meta(900), meta(900, dtype=torch.int32), meta(41, dtype=torch.int64))
        held.add_dense(slice(0, 40))
        terms = held.finish(W.t(), W)
    assert len(terms) == 11
    assert {launch.kernel.__name__ for launch in launches} >= {"dense_relu_kernel", "latent_gradients_kernel"}


@pytest.mark.parametrize("precision", ["exact", "bf16"])
@pytest.mark.parametrize(("tokens", "latents", "budget"), [(25_216, 49_152, 2**28), (100, 49_152, 2**20), (0, 9, 1)])
def test_dense_chunks_cover_the_tokens_within_the_budget(tokens, latents, budget, precision):
    chunks = step.dense_chunks(tokens, latents, budget, precision)
    assert [i for c in chunks for i in range(c.start, c.stop)] == list(range(tokens))
    assert all(
        (c.stop - c.start) * step.BYTES_PER_LATENT.get(precision, 5) * latents <= budget
        for c in chunks
        if c.stop - c.start > 1
    )


def test_the_paper_s_batch_is_one_sparse_chunk_at_149_active_latents():
    assert step.sparse_chunks(25_216, 768, 149.0, 2**28) == [slice(0, 25_216)]
    assert len(step.sparse_chunks(25_216, 768, 1490.0, 2**28)) == 9

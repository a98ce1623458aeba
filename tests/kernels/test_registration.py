"""The ops as torch sees them: opcheck, torch.compile(fullgraph=True), errors raised inside a compiled graph."""

import pytest
import torch
from torch.library import opcheck

import patchsae_kernels as pk
from tests.kernels.cases import make_case, random_latents

BUDGET = 2**28
OPS = torch.ops.patchsae


def leaf(tensor, needs_grad):
    return tensor.clone(memory_format=torch.preserve_format).requires_grad_(needs_grad)


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_encode(grad):
    case = make_case(0, 5, 8, 20)
    args = [leaf(t, grad) for t in (case.x, case.W_enc, case.b_enc, case.b_dec)]
    opcheck(OPS.encode.default, (*args, [], None, "relu", 0, "exact", BUDGET))
    opcheck(OPS.encode.default, (*args, [], None, "topk", 3, "fp32", BUDGET))
    opcheck(OPS.encode.default, (*args, [], torch.full((20,), 0.1), "jumprelu", 0, "bf16", BUDGET))


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_decodes(grad):
    z, case = random_latents(0, 6, 20), make_case(0, 6, 8, 20)
    csr = (leaf(z.values, grad), z.indices, z.indptr)
    dictionary = (leaf(case.W_dec, grad), leaf(case.b_dec, grad))
    ids = torch.tensor([0, 1, 0, 1, 1, 0])
    opcheck(OPS.decode.default, (*csr, *dictionary))
    opcheck(OPS.decode_masked.default, (*csr, torch.rand(2, 20) < 0.5, *dictionary, ids))


@pytest.mark.slow
def test_opcheck_ops_without_gradient():
    z, case = random_latents(0, 6, 20), make_case(0, 6, 8, 20)
    csr = (z.values, z.indices, z.indptr)
    stats = pk.LatentStats.empty(20, 3, num_classes=2)
    totals = [
        getattr(stats, n) for n in ("sums", "counts", "image_counts", "max_values", "max_position", "class_counts")
    ]
    opcheck(OPS.decode_sweep.default, (*csr, torch.randperm(20).int(), [1, 5], case.W_dec, case.b_dec, None))
    opcheck(OPS.latent_stats_.default, (*csr, 3, 0.2, torch.tensor([0, 1]), 0, *totals))
    opcheck(OPS.pool_tokens.default, (*csr, 20, 3, BUDGET))
    encoder = (case.x, case.W_enc, case.b_enc, case.b_dec, [], None)
    opcheck(OPS.encode_bounded.default, (*encoder, "topk", 3, "exact", BUDGET, 30))
    opcheck(OPS.reconstruct.default, (*encoder, case.W_dec, "relu", 0, "exact", BUDGET))
    opcheck(OPS.encode_backward.default, (*csr, case.x, case.W_enc, case.b_dec))
    opcheck(OPS.decode_backward.default, (case.x, *csr, case.W_dec, BUDGET))
    step = (case.x, case.W_enc, case.b_enc, case.W_dec, case.b_dec, torch.tensor([1, 4]), 1e-3, 1.0, 3, BUDGET)
    opcheck(OPS.sae_step.default, step)
    moments = (torch.zeros(20, 8), torch.zeros(20, 8))
    opcheck(OPS.adam_step_.default, (case.W_dec.clone(), case.W_dec, *moments, 1, 1e-3, 0.9, 0.999, 1e-8, True))


@pytest.mark.slow
def test_compile_fullgraph_gives_the_same_answers_and_gradients():
    case = make_case(0, 7, 8, 20)
    weights = pk.prepare(case.W_enc, case.b_enc, case.b_dec)

    def reconstruct(x, W_dec, b_dec):
        return pk.decode(pk.encode(x, weights), W_dec, b_dec)

    def latents(x):
        return pk.encode(x, weights, activation="topk", k=4)

    def sweep(z, rank):
        return pk.decode_sweep(z, rank, [1, 5, 20], case.W_dec, case.b_dec)

    outputs, grads = [], []
    for function in (reconstruct, torch.compile(reconstruct, fullgraph=True)):
        leaves = [leaf(t, True) for t in (case.x, case.W_dec, case.b_dec)]
        y = function(*leaves)
        y.square().sum().backward()
        outputs.append(y)
        grads.append([t.grad for t in leaves])
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(grads[1], grads[0])
    z = torch.compile(latents, fullgraph=True)(case.x)
    torch.testing.assert_close(z.to_dense(), latents(case.x).to_dense())
    rank = torch.randperm(20, generator=torch.Generator().manual_seed(0)).int()
    torch.testing.assert_close(torch.compile(sweep, fullgraph=True)(z, rank), sweep(z, rank))


@pytest.mark.slow
def test_bad_values_are_errors_inside_a_compiled_graph_too():
    case = make_case(0, 7, 8, 20)
    compiled = torch.compile(lambda x: pk.encode(x, case.W_enc, case.b_enc, case.b_dec), fullgraph=True)
    bad = case.x.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match="row 3"):
        compiled(bad)


def test_describe_names_every_op():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("patchsae::")}
    assert {f"patchsae::{name}" for name in pk.describe()["ops"]} == registered


@pytest.mark.slow
def test_a_compiled_graph_refuses_tangents_and_is_not_changed_by_autocast():
    case = make_case(0, 7, 8, 20)

    def reconstruct(x):
        return pk.decode(pk.encode(x, case.W_enc, case.b_enc, case.b_dec), case.W_dec, case.b_dec)

    compiled = torch.compile(reconstruct, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(case.x), reconstruct(case.x))
    pushed = torch.compile(lambda x: torch.func.jvp(reconstruct, (x,), (x,)), fullgraph=True)
    with pytest.raises(Exception, match="x has a tangent of forward-mode differentiation"):
        pushed(case.x)

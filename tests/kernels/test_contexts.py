"""What surrounds a call changes no bit of its answer: autocast, switches and defaults of the process, grad modes."""

from __future__ import annotations

import threading

import pytest
import torch

import patchsae_kernels as pk
from patchsae_kernels.arithmetic import as_said_by
from tests.kernels.contexts import CONTEXTS, matmul_precision
from tests.kernels.every_op import EVERY_OP, assert_same_bits, the_case

EXPECTED: dict[str, list[torch.Tensor]] = {}


def expected(op: str) -> list[torch.Tensor]:
    if op not in EXPECTED:
        EXPECTED[op] = EVERY_OP[op](the_case())
    return EXPECTED[op]


@pytest.mark.parametrize("op", EVERY_OP)
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_changes_no_bit(context: str, op: str) -> None:
    case, plain = the_case(), expected(op)
    with CONTEXTS[context]():
        found = EVERY_OP[op](case)
    assert_same_bits(found, plain)


@pytest.mark.parametrize("op", [op for op in EVERY_OP if "gradients" not in op and "threshold" not in op])
@pytest.mark.parametrize("made", ["inside", "outside"])
def test_inference_mode_changes_no_bit(made: str, op: str) -> None:
    """Weights and tokens made inside of it are used inside and outside of it."""
    with torch.inference_mode():
        case = type(the_case())(*(t.clone(memory_format=torch.preserve_format) for t in the_case()))
        found = EVERY_OP[op](the_case() if made == "outside" else case)
    assert_same_bits(found, expected(op))
    assert_same_bits(EVERY_OP[op](case), expected(op))


def test_weights_of_inference_mode_are_used_as_they_are_now() -> None:
    with torch.inference_mode():
        case = type(the_case())(*(t.clone(memory_format=torch.preserve_format) for t in the_case()))
        w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
        before = pk.encode(case.x, w).to_dense()
        case.W_enc.mul_(2)
        after = pk.encode(case.x, w).to_dense()
    assert not torch.equal(after, before)
    assert torch.equal(after, case.encode().to_dense())


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_gradients_reach_leaves_through_tensors_of_inference_mode(activation: str) -> None:
    with torch.inference_mode():
        x = the_case().x.clone()
    grads = []
    for tokens in (x, the_case().x):
        case = the_case()
        leaves = [t.requires_grad_() for t in (case.W_enc, case.W_dec)]
        if activation == "relu":
            z = pk.encode(tokens, leaves[0], case.b_enc, case.b_dec)
        else:
            theta = torch.full_like(case.b_enc, 0.1)
            z = pk.encode_jumprelu(tokens, leaves[0], case.b_enc, case.b_dec, theta, bandwidth=0.1).latents
        grads.append(torch.autograd.grad(pk.decode(z, leaves[1], case.b_dec).square().sum(), leaves))
    assert_same_bits(list(grads[0]), list(grads[1]))


@pytest.mark.parametrize("op", ["encode topk of many", "encode batchtopk"])
@pytest.mark.parametrize("budget", [256, 0.02])
def test_exact_is_the_float64_answer_at_any_k_with_the_same_bits_for_any_threads_and_budget(op: str, budget: float):
    options = {"activation": "topk", "k": 600} if "many" in op else {"activation": "batchtopk", "k": 160}
    case, before = the_case(), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(case.encode(**options, budget_mb=budget))
    torch.set_num_threads(before)
    z = results[0].validate()
    for other in results:
        assert_same_bits([other.values, other.indices, other.indptr], expected(op))
    pre = case.double().pre()
    assert (z.to_dense() - pre.float() * (z.to_dense() > 0)).abs().max() < 1e-5
    total = z.counts() if "many" in op else z.counts().sum()
    wanted = (pre > 0).sum(1).clamp(max=600) if "many" in op else torch.tensor(16 * 160)
    assert torch.equal(total, wanted)
    kept = z.to_dense() > 0
    missed = (pre * ~kept).amax(1) if "many" in op else (pre * ~kept).amax()
    least = torch.where(kept, pre, torch.inf).amin(1) if "many" in op else pre[kept].amin()
    assert (missed <= least + 1e-5).all()


def test_the_switches_are_as_they_were_once_the_last_thread_is_done() -> None:
    """Two ops that overlap: the second one enters while the switch is off and leaves after the first."""
    matmul, cpu = torch.backends.mkldnn.matmul, torch.device("cpu")
    first_is_done, second_is_in = threading.Event(), threading.Event()
    inside: list[str] = []

    def second() -> None:
        with as_said_by("exact", cpu):
            second_is_in.set()
            first_is_done.wait(10)
            inside.append(matmul.fp32_precision)

    with matmul_precision("medium"):
        thread = threading.Thread(target=second)
        with as_said_by("exact", cpu):
            thread.start()
            assert second_is_in.wait(10)
        first_is_done.set()
        thread.join()
        assert inside == ["ieee"]
        assert matmul.fp32_precision == "bf16"


def test_fp32_on_a_gpu_alone_follows_the_switch_for_tf32() -> None:
    matmul = torch.backends.cuda.matmul
    with matmul_precision("high"):
        for device, precision, seen in (
            ("cuda", "fp32", "tf32"),
            ("cuda", "exact", "ieee"),
            ("cuda", "bf16", "ieee"),
            ("cpu", "fp32", "ieee"),
        ):
            with as_said_by(precision, torch.device(device)):
                assert matmul.fp32_precision == seen

"""What `patchsae bench` times was checked before; what is wrong is named and not timed."""

from __future__ import annotations

import pytest
import torch

import patchsae_kernels as pk
from patchsae.bench import checks, ours
from patchsae.bench.case import floor, side, unchecked
from patchsae.bench.findings import passed
from patchsae.bench.inputs import Problem, make_problem
from patchsae.bench.records import record
from patchsae.bench.run import measured
from patchsae.bench.sizes import Size

SIZE = Size(images=2, tokens=5, d_in=16, d_sae=96, l0=8, topk=(3,), ks=(1, 20, 500), classes=2, sample=4, sets=2)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(SIZE)


def test_every_op_passes_its_check(problem: Problem) -> None:
    for case in ours.every(SIZE):
        assert case.check is not None
        assert passed(case.check(problem, case.ours.run(problem, 0))), case.name


@pytest.mark.parametrize("fault", [1.01, float("nan")])
def test_an_op_that_is_wrong_in_one_token_is_not_timed(fault: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = pk.decode, []

    def broken(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        y = right(*arguments)
        y[-1] *= fault
        return y

    monkeypatch.setattr(pk, "decode", broken)
    with pytest.raises(AssertionError, match="decode: relative error is"):
        list(measured(["decode"], "small", "cpu", 3))
    assert len(calls) == 1


def test_a_baseline_that_does_other_work_is_an_error(problem: Problem) -> None:
    other = side("PyTorch", lambda p: p.x + 1e-3)
    case = unchecked(lambda p: p.x).beside(
        "copy", other, floor("nothing", lambda p: None), lambda p, a, b: (checks.close("x", a, b),)
    )
    with pytest.raises(AssertionError, match="copy: x: largest difference"):
        record(case, problem, "tiny")


@pytest.mark.parametrize("apart", [0.0, 0.9e-4, 1.2e-4, 1.0, float("nan"), float("inf")])
def test_close_is_what_pytorch_calls_close(apart: float) -> None:
    other = torch.linspace(0.5, 2, 50)
    found = other.clone()
    found[7] += apart * other[7]
    same = torch.isclose(found, other, rtol=1e-4, atol=0).all().item()
    assert checks.close("x", found, other).ok == same


def test_a_problem_that_is_released_starts_again(problem: Problem) -> None:
    first = problem.cached("parameters", problem.copied_parameters)
    first["b_dec"] += 1
    assert problem.cached("parameters", problem.copied_parameters) is first
    problem.release()
    assert problem.cached("parameters", problem.copied_parameters)["b_dec"].equal(problem.b_dec)
    problem.release()


def test_latents_have_the_wanted_l0_and_the_first_images_are_a_problem_of_their_own(problem: Problem) -> None:
    large = make_problem(Size(images=20, tokens=20, d_in=64, d_sae=512, l0=16))
    assert large.z.l0 == pytest.approx(16, rel=0.1)
    part = large.first_images(3)
    assert part.labels.equal(large.labels[:3])
    assert part.class_ids.equal(large.class_ids[:60])
    assert part.z.to_dense().equal(large.z.to_dense()[:60])
    assert part.rows.tolist()[:: len(part.rows) - 1] == [0, 59]

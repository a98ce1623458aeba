"""The gate can fail: each kind of bad kernel is refused, for the reason that it is bad for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from triton.compiler.errors import CompilationError

from patchsae_kernels.calls import DecodeCall
from patchsae_kernels.triton import decode
from tests.gate import __main__ as command
from tests.gate import broken_kernels, races, shipped
from tests.gate.arguments import BF16, F16, F32, PAPER, Call, csr, meta, misaligned
from tests.gate.cases import Case, cases
from tests.gate.compiling import complaints, resources
from tests.gate.parts import PARTS, Part

each_part = pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
SM_90 = next(part for part in PARTS if part.name == "sm_90")


def only_case(part: Part, function: Callable[..., None], *arguments: Any, **options: Any) -> Case:
    (case,) = cases(part, [Call("broken", function, arguments, options)])
    return case


def product_case(part: Part, dtype: Any, tile: int, **options: int) -> Case:
    a = meta(tile, 768, dtype=dtype)
    return only_case(part, broken_kernels.product, a, a, meta(tile, tile), **options)


@each_part
def test_a_good_product_passes(part: Part) -> None:
    case = product_case(part, BF16, 128, num_warps=8, num_stages=2)
    used = resources(case)
    assert complaints(case, used) == []
    assert used.half_product
    assert used.registers > 0
    assert 0 < used.shared <= part.shared


@each_part
def test_spills_are_refused(part: Part) -> None:
    x = meta(512 * 4 * part.target.warp_size)  # 512 values a thread
    case = only_case(part, broken_kernels.crowded, x, x)
    (reason,) = complaints(case, resources(case))
    assert "spilled" in reason


@each_part
def test_too_much_shared_memory_is_refused(part: Part) -> None:
    stages = 9 if part.target.backend == "cuda" else 4  # of 32 KB each
    case = product_case(part, BF16, 128, num_warps=8, num_stages=stages)
    (reason,) = complaints(case, resources(case))
    assert "shared memory" in reason


def test_a_product_without_wgmma_is_refused() -> None:
    case = product_case(SM_90, BF16, 16, num_warps=1, num_stages=2)  # wgmma takes 64 rows and four warps
    (reason,) = complaints(case, resources(case))
    assert "expected wgmma" in reason


def test_a_product_that_waits_for_every_wgmma_is_refused() -> None:
    a, b, maxima = meta(128, 768, dtype=F16), meta(256, 768, dtype=F16), meta(128)
    case = only_case(SM_90, broken_kernels.rounded_maxima, a, b, maxima, num_warps=8, num_stages=3)
    (reason,) = complaints(case, resources(case))
    assert "waits for every wgmma" in reason


def test_a_product_that_converts_one_number_at_a_time_is_refused() -> None:
    a, b, maxima = meta(128, 768, dtype=BF16), meta(256, 768, dtype=BF16), meta(128)
    case = only_case(SM_90, broken_kernels.rounded_maxima, a, b, maxima, num_warps=8, num_stages=3)
    (reason,) = complaints(case, resources(case))
    assert "128 conversions of one number" in reason


def test_narrow_loads_are_refused() -> None:
    W = meta(PAPER.latents, PAPER.width)
    assert complaints_of_decode(W) == []
    (reason,) = complaints_of_decode(misaligned(W))
    assert "loads of 128 bits; expected" in reason


def complaints_of_decode(W: Tensor) -> list[str]:
    found = cases(SM_90, [Call("decode", decode.decode, (DecodeCall(*csr(PAPER), W, meta(PAPER.width)),))])
    (case,) = (case for case in found if case.name == "decode_kernel")
    return complaints(case, resources(case))


@each_part
@pytest.mark.parametrize("function", [broken_kernels.handed_over, broken_kernels.handed_on])
@pytest.mark.parametrize("barrier", [False, True])
def test_reading_back_is_refused(part: Part, function: Callable[..., None], barrier: bool) -> None:
    steps = (3,) if function is broken_kernels.handed_on else ()
    case = only_case(part, function, meta(1024), *steps, barrier)
    used = resources(case)
    assert used.read_back == barrier
    (reason,) = complaints(case, used)
    assert "READ_BACK" in reason


def test_reading_back_without_a_barrier_is_refused_where_it_is_expected() -> None:
    assert races.complaints("decode_sweep_kernel", 1) == []
    assert "no barrier" in races.complaints("decode_sweep_kernel", 0)[0]


@pytest.mark.parametrize(("name", "barriers"), [("latent_stats_image_kernel", 1), ("decode_sweep_kernel", None)])
def test_fewer_barriers_than_at_the_papers_shape_are_refused(name: str, barriers: int | None) -> None:
    assert races.at_the_papers_shape(name, races.READ_BACK[name]) == []
    (reason,) = races.at_the_papers_shape(name, barriers)
    assert f"READ_BACK has {races.READ_BACK[name]}" in reason


def test_a_kernel_that_no_call_starts_is_refused() -> None:
    started = cases(SM_90, [Call("decode", decode.decode, (DecodeCall(*csr(PAPER), meta(49152, 768), meta(768)),))])
    reasons = shipped.complaints(started)
    assert len(reasons) == len(shipped.shipped()) - len({case.name for case in started})
    assert not any("decode_kernel" in reason for reason in reasons)
    assert all("no call starts it" in reason for reason in reasons)
    unknown = only_case(SM_90, broken_kernels.in_place, meta(1024))
    assert any("not found as a kernel" in reason for reason in shipped.complaints([*started, unknown]))


@pytest.mark.parametrize(("words", "status"), [([], 1), (["in place"], 0)])
def test_the_command_refuses_what_no_call_starts_unless_it_is_about_some(
    words: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "CALLS", (Call("in place", broken_kernels.in_place, (meta(1024),), slow=True),))
    assert command.main(words) == status
    printed = capsys.readouterr().out
    assert printed.count("in_place") >= len(PARTS)
    assert ("decode_kernel: no call starts it" in printed) == (status == 1)


@each_part
def test_changing_memory_in_place_passes(part: Part) -> None:
    case = only_case(part, broken_kernels.in_place, meta(1024))
    assert resources(case).read_back is None
    assert complaints(case, resources(case)) == []


def test_a_product_of_float32_may_be_plain_arithmetic() -> None:
    case = product_case(SM_90, F32, 16, num_warps=1, num_stages=2)
    assert complaints(case, resources(case)) == []


@each_part
def test_what_does_not_compile_is_an_error(part: Part) -> None:
    with pytest.raises(CompilationError, match="no_such_function"):
        resources(only_case(part, broken_kernels.unknown_name, meta(16)))


def test_a_grid_beyond_the_limits_is_an_error() -> None:
    with pytest.raises(ValueError, match="65536"):
        only_case(SM_90, broken_kernels.tall, meta(16))


@each_part
def test_fusion_of_multiply_and_add_does_not_follow_the_environment(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    for default in ("0", "1"):
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", default)
        assert only_case(part, broken_kernels.crowded, meta(16), meta(16)).options["enable_fp_fusion"] is True


@each_part
def test_alignment_and_ones_make_cases_of_their_own(part: Part) -> None:
    x = meta(65_536)
    calls = [
        Call("aligned", broken_kernels.crowded, (x, x)),
        Call("sliced", broken_kernels.crowded, (x, misaligned(x))),
    ]
    assert len(cases(part, calls)) == 2
    assert len(cases(part, calls[:1] * 3)) == 1

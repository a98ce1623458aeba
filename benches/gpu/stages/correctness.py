"""What does not train, at real size in every precision against float64, then shapes and inputs that fit nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch

import patchsae_kernels as pk
from benches.gpu.bench import Bench
from benches.gpu.inputs import describe, residual_problem
from benches.gpu.records import Item, Result
from patchsae.bench import checks, ours
from patchsae.bench.case import Case
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Finding, Findings
from patchsae.bench.inputs import Problem
from patchsae.bench.sizes import Shape


def items(bench: Bench) -> Iterator[Item]:
    yield Item("inputs", lambda: Result(data=describe(bench.problem.z)))
    for case in ours.every(bench.size):
        yield Item(case.name, functools.partial(check, bench, case))
    for dtype in (torch.bfloat16, torch.float16):
        yield Item(f"encode relu, exact, from {str(dtype)[6:]}", functools.partial(check_input_dtype, bench, dtype))
    yield Item("half of all latents active", functools.partial(check_dense_start, bench))
    yield Item("outlier channels and tokens", functools.partial(check_outliers, bench))
    for shape in bench.size.awkward:
        name = f"N {shape.n}, D {shape.d}, S {shape.s}"
        yield Item(name, functools.partial(check_awkward, bench, shape))


def check(bench: Bench, case: Case) -> Result:
    """One op on the problem, in memory that holds nothing."""
    assert case.check is not None
    with checks.poisoned():
        found = case.ours.run(bench.problem, 0)
    return Result(case.check(bench.problem, found), {"l0": found.l0} if isinstance(found, pk.SparseLatents) else {})


def check_input_dtype(bench: Bench, dtype: torch.dtype) -> Result:
    p, spec = bench.problem, Encode("relu", "exact")
    x = p.x.to(dtype)
    with checks.poisoned():
        z = spec.run(p, x)
    return Result(checks.encode(p, spec, z, x), {"l0": z.l0})


def check_dense_start(bench: Bench) -> Result:
    """The released start, b_enc = 0: a row-sized part of the latents is active, so fixed capacities overflow."""
    start = bench.problem.first_images(bench.size.dense_images)
    return _check_all(start.with_bias(torch.zeros_like(start.b_enc)), ours.PRECISIONS)


def check_outliers(bench: Bench) -> Result:
    size = replace(bench.size, images=max(1, bench.size.images // 8), sets=1)
    return _check_all(residual_problem(size, bench.device, seed=1, outliers=True), ours.PRECISIONS)


def check_awkward(bench: Bench, shape: Shape) -> Result:
    size = replace(
        bench.size,
        images=shape.n,
        tokens=1,
        d_in=shape.d,
        d_sae=shape.s,
        l0=min(bench.size.l0, shape.s // 4),
        sets=1,
    )
    return _check_all(residual_problem(size, bench.device, seed=2), ("exact", "bf16"))


def _check_all(p: Problem, precisions: tuple[str, ...]) -> Result:
    """ReLU and top-k in some precisions and decode, on one problem: the worst of each finding."""
    findings: list[Finding] = []
    data = {}
    for precision in precisions:
        for spec in (Encode("relu", precision), Encode("topk", precision, min(p.size.middle_k, p.size.d_sae))):
            with checks.poisoned():
                z = spec.run(p)
            findings += _named(spec.name, checks.encode(p, spec, z))
            data[f"l0 of {spec.name}"] = z.l0
    with checks.poisoned():
        y = pk.decode(p.z, p.W_dec, p.b_dec)
    return Result((*findings, *_named("decode", checks.decode(p, p.z, y, p.W_dec))), data)


def _named(name: str, findings: Findings) -> list[Finding]:
    return [replace(finding, name=f"{name}: {finding.name}") for finding in findings]

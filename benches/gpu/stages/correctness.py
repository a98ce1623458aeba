"""Every op at real size in every precision against float64, then shapes and inputs that fit nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch

import patchsae_kernels as pk
from benches.gpu.bench import Bench
from benches.gpu.inputs import describe, residual_problem
from benches.gpu.records import Item, Result
from patchsae.bench import checks
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Finding, Findings, worst
from patchsae.bench.inputs import TAU, Problem
from patchsae.bench.sizes import Shape, Size

PRECISIONS = ("exact", "bf16", "fp32")


def items(bench: Bench) -> Iterator[Item]:
    yield Item("inputs", lambda: Result(data=describe(bench.problem.z)))
    for spec in encodes(bench.size):
        yield Item(f"encode {spec.name}", functools.partial(check_encode, bench, spec))
    for precision in ("fp32", "bf16"):
        yield Item(f"decode, {precision}", functools.partial(check_decode, bench, precision))
        yield Item(f"decode_masked, {precision}", functools.partial(check_masked, bench, precision))
        yield Item(f"decode_sweep, {precision}", functools.partial(check_sweep, bench, precision))
    yield Item("latent_stats", functools.partial(check_stats, bench))
    for spec in (*(Encode("relu", p) for p in PRECISIONS), Encode("topk", "exact", bench.size.middle_k)):
        yield Item(f"reconstruct {spec.name}", functools.partial(check_reconstruct, bench, spec))
    for dtype in (torch.bfloat16, torch.float16):
        yield Item(f"encode relu, exact, from {str(dtype)[6:]}", functools.partial(check_input_dtype, bench, dtype))
    yield Item("half of all latents active", functools.partial(check_dense_start, bench))
    yield Item("outlier channels and tokens", functools.partial(check_outliers, bench))
    for shape in bench.size.awkward:
        name = f"N {shape.n}, D {shape.d}, S {shape.s}"
        yield Item(name, functools.partial(check_awkward, bench, shape))


def encodes(size: Size) -> list[Encode]:
    """Every activation in every precision."""
    kinds = [("relu", None), ("jumprelu", None), *(("topk", k) for k in size.topk), ("batchtopk", size.middle_k)]
    return [Encode(activation, precision, k) for activation, k in kinds for precision in PRECISIONS]


def check_encode(bench: Bench, spec: Encode) -> Result:
    with checks.poisoned():
        z = spec.run(bench.problem)
    return Result(checks.encode(bench.problem, spec, z), {"l0": z.l0})


def check_decode(bench: Bench, precision: str) -> Result:
    p = bench.problem
    W = p.dictionary(precision)
    with checks.poisoned():
        y = pk.decode(p.z, W, p.b_dec)
        top = pk.decode(p.top_zs[0], W, p.b_dec)
    return Result(worst((*checks.decode(p, p.z, y, W), *checks.decode(p, p.top_zs[0], top, W))))


def check_masked(bench: Bench, precision: str) -> Result:
    """One keep set a class, and one for all."""
    p = bench.problem
    W, keep = p.dictionary(precision), p.keep
    with checks.poisoned():
        y = pk.decode_masked(p.z, keep, W, p.b_dec, p.class_ids)
        same = pk.decode_masked(p.z, keep[0].contiguous(), W, p.b_dec)
    by_class = checks.decode(p, p.z, y, W, keep[p.class_ids[p.rows]])
    return Result(worst((*by_class, *checks.decode(p, p.z, same, W, keep[:1]))))


def check_sweep(bench: Bench, precision: str) -> Result:
    p = bench.problem
    W = p.dictionary(precision)
    with checks.poisoned():
        on, off = pk.decode_sweep(p.z, p.rank, p.size.sweep, W, p.b_dec, p.class_ids)
    return Result(checks.sweep(p, p.z, on, off, W))


def check_stats(bench: Bench) -> Result:
    p = bench.problem
    with checks.poisoned():
        found = pk.latent_stats(p.z, p.size.tokens, TAU, p.labels, p.size.classes)
    return Result(checks.stats(p, p.z, found, TAU))


def check_reconstruct(bench: Bench, spec: Encode) -> Result:
    p = bench.problem
    W = p.dictionary("bf16" if spec.precision == "bf16" else "fp32")
    with checks.poisoned():
        found = spec.reconstruct(p, W)
    return Result(checks.reconstruction(p, spec, found, W))


def check_input_dtype(bench: Bench, dtype: torch.dtype) -> Result:
    p, spec = bench.problem, Encode("relu", "exact")
    x = p.x.to(dtype)
    with checks.poisoned():
        z = spec.run(p, x)
    return Result(checks.encode(p, spec, z, x), {"l0": z.l0})


def check_dense_start(bench: Bench) -> Result:
    """The released start, b_enc = 0: a row-sized part of the latents is active, so fixed capacities overflow."""
    start = bench.problem.first_images(bench.size.dense_images)
    return _check_all(start.with_bias(torch.zeros_like(start.b_enc)), PRECISIONS)


def check_outliers(bench: Bench) -> Result:
    size = replace(bench.size, images=max(1, bench.size.images // 8), sets=1)
    return _check_all(residual_problem(size, bench.device, seed=1, outliers=True), PRECISIONS)


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

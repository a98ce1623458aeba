"""The alternatives inside encode, timed beside each other: what the tuning table is to be filled from."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from benches.gpu.bench import Bench
from benches.gpu.inputs import calibrated_bias
from benches.gpu.lines import dense_encode, floor
from benches.gpu.measure import spreads
from benches.gpu.records import Item, Result
from patchsae.bench import checks, ours
from patchsae.bench.case import Side
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Findings, passed
from patchsae.bench.inputs import Problem
from patchsae.bench.measure import timed
from patchsae.bench.timing import spread
from patchsae_kernels import servers


def items(bench: Bench) -> Iterator[Item]:
    size = bench.size
    for precision in ("bf16", "exact", "fp32"):
        relu = Encode("relu", precision)
        yield Item(f"designs, relu, L0 {size.l0}, {precision}", functools.partial(_designs, bench, relu))
    for k in size.topk:
        for precision in ("bf16", "exact"):
            spec = Encode("topk", precision, k)
            yield Item(f"designs, {spec.name}", functools.partial(_designs, bench, spec))
    for spec in (Encode("relu", "bf16"), Encode("relu", "exact"), Encode("topk", "bf16", size.topk[-1])):
        yield Item(f"kernels of {spec.name}", functools.partial(_kernels, bench, spec))
    yield Item("candidates of the exact encode", functools.partial(_candidates, bench))
    for l0 in size.other_l0:
        for precision in ("bf16", "exact"):
            spec = Encode("relu", precision)
            yield Item(f"designs, relu, L0 {l0}, {precision}", functools.partial(_designs, bench, spec, l0))
    for precision in ("bf16", "exact"):
        yield Item(f"half of all latents active, {precision}", functools.partial(_dense_start, bench, precision))
    for number in range(_candidate_tiles(bench)):
        yield Item(f"tile {number}", functools.partial(_tile, bench, number))


def _designs(bench: Bench, spec: Encode, l0: int | None = None) -> Result:
    """Every design that serves this precision, and the vendor's product alone."""
    from patchsae_kernels.triton import tuning

    p = bench.problem if l0 is None else _with_l0(bench.problem, l0)
    sides = {}
    for design in tuning.PRODUCTS:
        with tuning.override(product=design):
            # The interpreter's bf16 dot is wrong.
            usable = not (servers.interpreted and spec.precision == "bf16" and design == "fused")
            if usable and tuning.product_design(spec.precision) == design:
                sides[design] = _under(spec, product=design)
    return _timed(bench, p, spec, {**sides, "floor": floor()})


def _tile(bench: Bench, number: int) -> Result:
    """One tile of the fused product, in both precisions that use it."""
    from patchsae_kernels.triton import tuning

    tile = tuning.PRODUCT_CANDIDATES[_architecture(bench)][number]
    sides: dict[str, Side] = {}
    findings: Findings = ()
    for precision in ("bf16", "exact"):
        spec = Encode("relu", precision)
        sides[precision] = _under(spec, product="fused", tile=tile)
        findings += checks.encode(bench.problem, spec, sides[precision].run(bench.problem, 0))
    result = _clocked(bench, bench.problem, sides | {"floor": floor()}, findings)
    return Result(result.findings, {**result.data, "tile": repr(tile)})


def _dense_start(bench: Bench, precision: str) -> Result:
    """The released start beside the released encode."""
    start = bench.problem.first_images(bench.size.dense_images)
    p, spec = start.with_bias(torch.zeros_like(start.b_enc)), Encode("relu", precision)
    return _timed(
        bench, p, spec, {"encode": ours.encode(spec).ours, "addmm + relu, fp32": dense_encode(), "floor": floor()}
    )


def _kernels(bench: Bench, spec: Encode) -> Result:
    """Microseconds a call of every kernel inside one encode: what a missed bar is made of."""
    if not bench.on_gpu:
        return Result(skipped="kernels are profiled on a GPU only")
    from torch.profiler import ProfilerActivity, profile

    calls = 3
    spec.run(bench.problem)
    torch.cuda.synchronize(bench.device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            spec.run(bench.problem)
        torch.cuda.synchronize(bench.device)
    spent = {e.key: (e.device_time_total / calls, e.count / calls) for e in profiler.key_averages()}
    longest = sorted(spent.items(), key=lambda item: -item[1][0])[:20]
    return Result(data={"microseconds": {name: {"time": t, "launches": n} for name, (t, n) in longest}})


def _candidates(bench: Bench) -> Result:
    """How many latents a token the exact encode scores again."""
    if not servers.has_triton(bench.device):
        return Result(skipped="the reference serves this device and screens nothing")
    from patchsae_kernels.triton import encode

    p = bench.problem
    counts = encode.screening_report(p.x, p.W_enc, p.b_enc, p.b_dec).tolist()
    mean = sum(counts) / len(counts)
    return Result(data={"mean": mean, **spread(counts)._asdict(), "largest": max(counts), "l0": p.z.l0})


def _timed(bench: Bench, p: Problem, spec: Encode, sides: dict[str, Side]) -> Result:
    """Every side that gives latents is checked first."""
    findings: Findings = ()
    for side in sides.values():
        if side.name == "encode":
            findings += checks.encode(p, spec, side.run(p, 0))
    return _clocked(bench, p, sides, findings)


def _clocked(bench: Bench, p: Problem, sides: dict[str, Side], findings: Findings) -> Result:
    try:
        if not passed(findings):
            return Result(findings)
        data = spreads(timed(sides, p, bench.device, bench.pace))
        return Result(findings, data | {"precision": {key: side.precision for key, side in sides.items()}})
    finally:
        p.release()
        bench.release()


def _under(spec: Encode, product: str, tile: Any = None) -> Side:
    """`encode` with a design, and maybe a tile, forced."""
    from patchsae_kernels.triton import tuning

    plain = ours.encode(spec).ours

    def run(p: Problem, turn: int) -> object:
        with tuning.override(product=product, tile=tile):
            return plain.run(p, turn)

    return Side(plain.name, spec.precision, run)


def _with_l0(p: Problem, l0: int) -> Problem:
    return p.with_bias(calibrated_bias(p.x, p.W_enc, p.b_enc, p.b_dec, l0))


def _candidate_tiles(bench: Bench) -> int:
    try:
        from patchsae_kernels.triton import tuning
    except ImportError:
        return 0
    return len(getattr(tuning, "PRODUCT_CANDIDATES", {}).get(_architecture(bench), ()))


def _architecture(bench: Bench) -> str:
    if not bench.on_gpu:
        return "interpreter"
    part = torch.cuda.get_device_properties(bench.device)
    return getattr(part, "gcnArchName", "").split(":")[0] if torch.version.hip else f"sm_{part.major}{part.minor}"

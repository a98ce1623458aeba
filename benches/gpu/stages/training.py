"""The lines of training, checked and measured, and the rate of the whole recipe at steady state."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

import patchsae_kernels as pk
from benches.gpu import checks, steps
from benches.gpu.bench import Bench
from benches.gpu.inputs import Problem, calibrated_bias
from benches.gpu.lines import Line
from benches.gpu.measure import measure_line
from benches.gpu.records import Finding, Item, Result
from benches.gpu.stages.masking import _load, _make_sparse
from benches.gpu.timing import Pace, interleaved, spread
from patchsae.bench.measure import peak_mb
from patchsae_kernels import gpu

BUDGET = 256 * 2**20
RECIPE_IMAGES = 2_621_440
CROSSOVER_L0 = 600, 1500
"""Above the 512 entries a token that an encode first makes room for: from there on a sparse step's time is a line."""
PACE = Pace(seconds=4.0, min_rounds=5, max_rounds=400, warm_ups=3)


def items(bench: Bench) -> Iterator[Item]:
    yield Item("sae_step and adam_step, twice", functools.partial(_twice, bench))
    for line in steps.training_lines(bench.size):
        yield Item(line.name, functools.partial(_measure, bench, line))
    yield Item("recorded step and optimiser", functools.partial(_recorded, bench))
    for precision in ("exact", "bf16"):
        yield Item(f"where dense and sparse steps meet, {precision}", functools.partial(_crossover, bench, precision))
    yield Item("whole recipe, pixels on the device", functools.partial(_recipe, bench))


def _measure(bench: Bench, line: Line) -> Result:
    try:
        return measure_line(line if bench.on_gpu else replace(line, pace=None), bench.problem, bench)
    finally:
        bench.release()


def _twice(bench: Bench) -> Result:
    """The same bits, dead latents included."""
    found = []
    for _ in range(2):
        s = steps.state(bench.problem, "dead")
        params = {n: t.clone(memory_format=torch.preserve_format) for n, t in s.params.items()}
        with checks.poisoned():
            terms, grads = pk.sae_step(steps.images(bench.problem, 0), params, l1=steps.L1, dead=s.dead)
        pk.adam_step(params, grads, pk.adam_init(params), lr=steps.RATE)
        found.append([*terms, *grads.values(), *params.values()])
    return Result((checks.same_bits(*found), *(checks.finite(t) for t in found[0][:6])))


def _recorded(bench: Bench) -> Result:
    """`pk.StepGraph` against the same two steps op by op: the same bits, and its time beside theirs."""
    p = bench.problem
    if not gpu.serves(p.device):
        return Result(skipped="steps are recorded on a GPU only")
    s = steps.state(p, "trained")
    sides = [{n: t.clone(memory_format=torch.preserve_format) for n, t in s.params.items()} for _ in range(2)]
    states = [pk.adam_init(params) for params in sides]
    shape = (p.size.images, p.size.tokens, p.size.d_in)
    capacity = int(1.25 * p.size.n * p.size.l0) + p.size.d_sae
    sparse = torch.zeros((), device=p.device)  # as little as no share at all
    graph = pk.StepGraph(sides[0], states[0], shape=shape, capacity=capacity, l1=steps.L1)

    def recorded(turn: int) -> pk.StepTerms:
        return graph.step(steps.images(p, turn), lr=steps.RATE)

    def apart(turn: int) -> pk.StepTerms:
        terms, grads = pk.sae_step(steps.images(p, turn), sides[1], l1=steps.L1, choice=pk.StepChoice(sparse))
        pk.adam_step(sides[1], grads, states[1], lr=steps.RATE)
        return terms

    findings = []
    for turn in range(2):
        found, expected = recorded(turn), apart(turn)
        findings.append(checks.same_bits(list(found), list(expected)))
    findings.append(checks.same_bits(list(sides[0].values()), list(sides[1].values())))
    times = interleaved({"recorded": recorded, "apart": apart}, bench.device, bench.pace)
    data = {name: spread(values)._asdict() for name, values in times.items()}
    return Result(tuple(findings), {**data, "peak_mb": peak_mb(lambda: recorded(0), bench.device)})


def _crossover(bench: Bench, precision: str) -> Result:
    """Times of both steps at two L0; a line through the sparse ones meets the dense time at the entry of DENSE_FROM."""
    p = bench.problem
    if not gpu.serves(p.device):
        return Result(skipped="the choice is made on a GPU only")
    from patchsae_kernels.triton import tuning

    low, high = CROSSOVER_L0 if bench.on_gpu else (p.size.l0, 2 * p.size.l0)
    times: dict[str, float] = {}
    for l0 in (low, high):
        level = calibrated_bias(p.x, p.W_enc, p.b_enc, p.b_dec, l0)
        params = {**{n: getattr(p, n) for n in steps.NAMES}, "b_enc": level}
        paths = ("sparse", "dense") if l0 == low else ("sparse",)
        sides = {path: functools.partial(_one_way, p, params, precision, path, l0 / p.size.d_sae) for path in paths}
        taken = interleaved(sides, bench.device, steps.SLOW if bench.on_gpu else bench.pace)
        times |= {f"{path} at {l0}": spread(values).median for path, values in taken.items()}
    slope = (times[f"sparse at {high}"] - times[f"sparse at {low}"]) / (high - low)
    meets = low + (times[f"dense at {low}"] - times[f"sparse at {low}"]) / slope if slope > 0 else float("inf")
    data = {**times, "meet at L0": meets, "meet at share": meets / p.size.d_sae, "table": tuning.dense_from(precision)}
    return Result((), data)


def _one_way(p: Problem, params: dict[str, Tensor], precision: str, path: str, share: float, turn: int) -> list[Tensor]:
    """The op itself, which takes a path."""
    x, weights = p.xs[turn % len(p.xs)], [params[name] for name in steps.NAMES]
    settings = (steps.L1, steps.CLS_WEIGHT, p.size.tokens, BUDGET, precision, None, share, path)
    return torch.ops.patchsae.sae_step(x, *weights, None, *settings)


def _recipe(bench: Bench) -> Result:
    """CLIP in bfloat16, step, optimiser, at the sparse steady state; the dense start is the line of its own."""
    if importlib.util.find_spec("open_clip") is None:
        return Result(skipped="open_clip is not installed")
    from patchsae.models.sae import SAEConfig, SparseAutoencoder

    size, g = bench.size, torch.Generator().manual_seed(0)
    clip = _load(bench, torch.bfloat16 if bench.on_gpu else torch.float32)
    sae = SparseAutoencoder(SAEConfig(clip.width, size.d_sae), g).to(bench.device).requires_grad_(False)
    pixels = torch.randn(size.images, 3, *clip.image_size, generator=g).to(bench.device)
    _make_sparse(sae, clip.residual(pixels[:4]).float().reshape(-1, clip.width), size.l0)
    params = sae.parameters_by_name()
    moments, choice = pk.adam_init(params), pk.StepChoice()
    last: list[pk.StepTerms] = []

    def step(_turn: int) -> None:
        with torch.no_grad():
            residual = clip.residual(pixels).float()
        terms, grads = pk.sae_step(residual, params, l1=steps.L1, choice=choice, prepared=sae.prepared)
        pk.adam_step(params, grads, moments, lr=1e-6, prepared=sae.prepared)  # so small that L0 stays
        last[:] = [terms]

    times = interleaved({"step": step}, bench.device, PACE if bench.on_gpu else bench.pace)["step"]
    median = spread(times).median
    data = {
        "images": size.images,
        "step": spread(times)._asdict(),
        "images_per_s": 1e3 * size.images / median,
        "minutes for 2,621,440 images": RECIPE_IMAGES / size.images * median / 6e4,
        "l0": float(last[0].l0),
        "peak_mb": peak_mb(lambda: step(0), bench.device),
    }
    return Result((Finding("total that is not finite", float(not torch.isfinite(last[0].total)), 0),), data)

"""The lines of training, checked and measured, and the rate of the whole recipe at steady state."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

import patchsae_kernels as pk
from benches.gpu import steps
from benches.gpu.bench import Bench
from benches.gpu.inputs import calibrated_bias
from benches.gpu.measure import measure_case
from benches.gpu.records import Item, Result
from patchsae.bench import checks
from patchsae.bench.findings import Finding
from patchsae.bench.inputs import Problem
from patchsae.bench.timing import Pace, interleaved
from patchsae_kernels import servers

BUDGET = 256 * 2**20
RECIPE_IMAGES = 2_621_440
CROSSOVER_L0 = 600, 1500
"""Above the 512 entries a token that an encode first makes room for: from there on a sparse step's time is a line."""
PACE = Pace(seconds=4.0, min_rounds=5, max_rounds=400, warm_ups=3)


def items(bench: Bench) -> Iterator[Item]:
    yield Item("sae_step and adam_step, twice", functools.partial(_twice, bench))
    for case in steps.training_lines(bench.size):
        paced = case if bench.on_gpu else replace(case, pace=None)
        yield Item(case.name, lambda case=paced: measure_case(case, bench.problem, bench))
    yield Item("recorded step and optimiser", functools.partial(_recorded, bench))
    for precision in ("exact", "bf16"):
        yield Item(f"where dense and sparse steps meet, {precision}", functools.partial(_crossover, bench, precision))
    yield Item("whole recipe, pixels on the device", functools.partial(_recipe, bench))


def _twice(bench: Bench) -> Result:
    """The same bits, dead latents included."""
    found = []
    for _ in range(2):
        s = steps.state(bench.problem, "dead")
        params = steps.copies(s)
        with checks.poisoned():
            terms, grads = pk.sae_step(bench.problem.images(), params, l1=steps.L1, dead=s.dead)
        pk.adam_step(params, grads, pk.adam_init(params), lr=steps.RATE)
        found.append([*terms, *grads.values(), *params.values()])
    return Result((checks.same_bits(*found), *(checks.finite(t) for t in found[0][:6])))


def _recorded(bench: Bench) -> Result:
    """`pk.StepGraph` against the same two steps op by op: the same bits, and its time beside theirs."""
    p = bench.problem
    if not servers.has_triton(p.device):
        return Result(skipped="steps are recorded on a GPU only")
    s = steps.state(p, "trained")
    sides = [steps.copies(s) for _ in range(2)]
    states = [pk.adam_init(params) for params in sides]
    shape = (p.size.images, p.size.tokens, p.size.d_in)
    capacity = int(1.25 * p.size.n * p.size.l0) + p.size.d_sae
    sparse = torch.zeros((), device=p.device)  # as little as no share at all
    graph = pk.StepGraph(sides[0], states[0], shape=shape, capacity=capacity, l1=steps.L1)

    def recorded(turn: int) -> pk.StepTerms:
        return graph.step(p.images(turn), lr=steps.RATE)

    def apart(turn: int) -> pk.StepTerms:
        terms, grads = pk.sae_step(p.images(turn), sides[1], l1=steps.L1, choice=pk.StepChoice(sparse))
        pk.adam_step(sides[1], grads, states[1], lr=steps.RATE)
        return terms

    findings = []
    for turn in range(2):
        found, expected = recorded(turn), apart(turn)
        findings.append(checks.same_bits(list(found), list(expected)))
    findings.append(checks.same_bits(list(sides[0].values()), list(sides[1].values())))
    times = interleaved({"recorded": recorded, "apart": apart}, bench.device, bench.pace)
    data = {name: taken.spread._asdict() for name, taken in times.items()}
    return Result(tuple(findings), {**data, "peak_mb": times["recorded"].peak_mb})


def _crossover(bench: Bench, precision: str) -> Result:
    """Times of both steps at two L0; a line through the sparse ones meets the dense time at the entry of DENSE_FROM."""
    p = bench.problem
    if not servers.has_triton(p.device):
        return Result(skipped="the choice is made on a GPU only")
    from patchsae_kernels.triton import tuning

    low, high = CROSSOVER_L0 if bench.on_gpu else (p.size.l0, 2 * p.size.l0)
    times: dict[str, float] = {}
    for l0 in (low, high):
        level = calibrated_bias(p.x, p.W_enc, p.b_enc, p.b_dec, l0)
        params = {**p.parameters, "b_enc": level}
        paths = ("sparse", "dense") if l0 == low else ("sparse",)
        sides = {path: functools.partial(_one_way, p, params, precision, path, l0 / p.size.d_sae) for path in paths}
        taken = interleaved(sides, bench.device, steps.SLOW if bench.on_gpu else bench.pace)
        times |= {f"{path} at {l0}": t.median for path, t in taken.items()}
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
    from benches.vit import make_sparse
    from patchsae.models.clip import load_clip
    from patchsae.models.sae import SparseAutoencoder
    from patchsae.models.sae_config import SAEConfig

    size, g = bench.size, torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    clip = load_clip(size.clip, None, device=bench.device, dtype=dtype)
    sae = SparseAutoencoder(SAEConfig(clip.width, size.d_sae), g).to(bench.device).requires_grad_(False)
    pixels = torch.randn(size.images, 3, *clip.image_size, generator=g).to(bench.device)
    make_sparse(sae, clip.residual(pixels[:4]).float().reshape(-1, clip.width), size.l0)
    params = sae.parameters_by_name()
    moments, choice = pk.adam_init(params), pk.StepChoice()
    last: list[pk.StepTerms] = []

    def step(_turn: int) -> None:
        with torch.no_grad():
            residual = clip.residual(pixels).float()
        terms, grads = pk.sae_step(residual, params, l1=steps.L1, choice=choice, prepared=sae.prepared)
        pk.adam_step(params, grads, moments, lr=1e-6, prepared=sae.prepared)  # so small that L0 stays
        last[:] = [terms]

    taken = interleaved({"step": step}, bench.device, PACE if bench.on_gpu else bench.pace)["step"]
    data = {
        "images": size.images,
        "step": taken.spread._asdict(),
        "images_per_s": 1e3 * size.images / taken.median,
        "minutes for 2,621,440 images": RECIPE_IMAGES / size.images * taken.median / 6e4,
        "l0": float(last[0].l0),
        "peak_mb": taken.peak_mb,
    }
    return Result((Finding("total that is not finite", float(not torch.isfinite(last[0].total)), 0),), data)

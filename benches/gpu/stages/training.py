"""The lines of training, checked and measured, and the rate of the whole recipe at steady state."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import torch

import patchsae_kernels as pk
from benches.gpu import checks, steps
from benches.gpu.bench import Bench
from benches.gpu.lines import Line
from benches.gpu.measure import measure_line
from benches.gpu.records import Finding, Item, Result
from benches.gpu.stages.masking import _load, _make_sparse
from benches.gpu.timing import Pace, interleaved, spread
from patchsae.bench.measure import peak_mb

RECIPE_IMAGES = 2_621_440
PACE = Pace(seconds=4.0, min_rounds=5, max_rounds=400, warm_ups=3)


def items(bench: Bench) -> Iterator[Item]:
    yield Item("sae_step and adam_step, twice", functools.partial(_twice, bench))
    for line in steps.training_lines(bench.size):
        yield Item(line.name, functools.partial(_measure, bench, line))
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


def _recipe(bench: Bench) -> Result:
    """CLIP in bfloat16, step, optimiser, at the sparse steady state; the dense start is the line of its own."""
    if importlib.util.find_spec("open_clip") is None:
        return Result(skipped="open_clip is not installed")
    from patchsae.sae import SAEConfig, SparseAutoencoder

    size, g = bench.size, torch.Generator().manual_seed(0)
    clip = _load(bench, torch.bfloat16 if bench.on_gpu else torch.float32)
    sae = SparseAutoencoder(SAEConfig(clip.width, size.d_sae), g).to(bench.device).requires_grad_(False)
    pixels = torch.randn(size.images, 3, *clip.image_size, generator=g).to(bench.device)
    _make_sparse(sae, clip.residual(pixels[:4]).float().reshape(-1, clip.width), size.l0)
    params = sae.parameters_by_name()
    moments = pk.adam_init(params)
    last: list[pk.StepTerms] = []

    def step(_turn: int) -> None:
        with torch.no_grad():
            residual = clip.residual(pixels).float()
        terms, grads = pk.sae_step(residual, params, l1=steps.L1)
        pk.adam_step(params, grads, moments, lr=1e-6)  # so small that L0 stays
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

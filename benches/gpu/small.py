"""Every kernel on small shapes that fit no tile, for the sanitizer: ``python -m benches.gpu.small DEVICE``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

import patchsae_kernels as pk
from benches.gpu import steps
from benches.gpu.inputs import residual_problem
from benches.gpu.sizes import TINY
from patchsae.bench.encodes import Encode
from patchsae.bench.inputs import TAU, Problem
from patchsae_kernels import servers

SMALL = replace(TINY, tokens=13, d_in=100, d_sae=1000, l0=20, topk=(8,), sets=1)


def run_all(p: Problem) -> None:
    """All activations and precisions, overflow and repair; results are not looked at."""
    specs = [Encode(a, precision) for a in ("relu", "jumprelu") for precision in ("exact", "bf16", "fp32")]
    specs += [Encode("topk", "exact", 8), Encode("topk", "bf16", 32), Encode("batchtopk", "exact", 8)]
    for spec in specs:
        spec.run(p)
    for W in (p.W_dec, p.W_dec_bf16):
        pk.decode(p.z, W, p.b_dec)
        pk.decode_masked(p.z, p.keep(), W, p.b_dec, p.class_ids)
        pk.decode_sweep(p.z, p.rank, p.size.sweep, W, p.b_dec, p.class_ids)
        Encode("relu", "exact").reconstruct(p, W)
    for capacity in (0, 5, 4096):
        z, _ = pk.encode_bounded(p.x, p.weights, capacity=capacity)
        pk.decode(z, p.W_dec, p.b_dec)
    pk.latent_stats(p.z, p.size.tokens, TAU, p.labels, p.size.classes)
    train(p)


def train(p: Problem) -> None:
    """The step by both paths with dead latents, the optimiser, and gradients through autograd."""
    for kind in ("dead", "start"):
        s = steps.state(p, kind)
        params = steps.copies(s)
        for budget in (256, 0.05):
            _, grads = pk.sae_step(p.images(), params, l1=steps.L1, dead=s.dead, budget_mb=budget)
            pk.sae_step(p.images(), params, l1=steps.L1, dead=s.dead, budget_mb=budget, precision="bf16")
        pk.adam_step(params, grads, pk.adam_init(params), lr=steps.RATE)
    steps.topk_gradients(8, p, 0)


def variants(p: Problem) -> None:
    """A learning threshold, AuxK, bfloat16 moments with the encoder packed on the way, and what a step records."""
    s = steps.state(p, "dead")
    params = steps.copies(s)
    dead = s.dead
    assert dead is not None
    encoder = [params[name] for name in ("W_enc", "b_enc", "b_dec")]
    threshold = p.threshold.clone().requires_grad_()
    z, l0 = pk.encode_jumprelu(p.x, *encoder, threshold, bandwidth=0.5)
    (pk.decode(z, params["W_dec"], params["b_dec"]).square().mean() + l0).backward()
    pk.reconstruct_dead(p.x, params, dead, k=4)
    prepared = pk.prepare(*encoder)
    prepared.packed("exact")
    state = pk.adam_init(params, moments=torch.bfloat16)
    _, grads = pk.sae_step(p.images(), params, l1=steps.L1, prepared=prepared)
    pk.adam_step(params, grads, state, lr=steps.RATE, prepared=prepared)
    if servers.has_triton(p.device):
        shape = (p.size.images, p.size.tokens, p.size.d_in)
        graph = pk.StepGraph(params, state, shape=shape, capacity=5, l1=steps.L1, dead_capacity=8)  # overflows
        graph.x.copy_(p.images())
        graph.dead.copy_(dead)
        graph.controls.copy_(graph._controls(steps.RATE))
        graph._run()  # what would be recorded: the checkers run without the allocator that a recording needs


@contextmanager
def fewer_places() -> Iterator[None]:
    """So few slots and so little room that tokens and outputs overflow."""
    from patchsae_kernels.triton import encode

    fewer = {"SLOTS": 8, "TOPK_SLOTS": 8, "PLACES": 1, "EXPECTED": 3}
    before = {name: getattr(encode, name) for name in fewer}
    for name, number in fewer.items():
        setattr(encode, name, number)
    try:
        yield
    finally:
        for name, number in before.items():
            setattr(encode, name, number)


def main(device: str) -> None:
    problem = residual_problem(SMALL if device.startswith("cuda") else TINY, torch.device(device))
    run_all(problem)
    variants(problem)
    if servers.has_triton(problem.x.device):
        with fewer_places():
            run_all(problem)
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])

"""Encode inside a captured graph, and encode + decode under torch.compile(fullgraph=True)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import patchsae_kernels as pk
from benches.gpu.bench import Bench
from benches.gpu.records import Item, Result
from benches.gpu.stages.determinism import tensors
from patchsae.bench import checks
from patchsae.bench.encodes import Encode
from patchsae.bench.findings import Finding
from patchsae.bench.inputs import Problem

Bounded = tuple[pk.SparseLatents, Tensor]


def items(bench: Bench) -> Iterator[Item]:
    for spec in (Encode("relu", "exact"), Encode("relu", "bf16"), Encode("topk", "bf16", bench.size.middle_k)):
        yield Item(f"bounded encode {spec.name}", functools.partial(_bounded, bench, spec))
        yield Item(f"captured graph, encode {spec.name}", functools.partial(_captured, bench, spec))
    for spec in (Encode("relu", "exact"), Encode("topk", "bf16", bench.size.middle_k)):
        yield Item(f"torch.compile ({bench.backend}), {spec.name}", functools.partial(_compiled, bench, spec))


def _bounded(bench: Bench, spec: Encode) -> Result:
    """As `encode` where the capacity suffices, and an OverflowError where it is one entry short."""
    p = bench.problem
    expected = spec.run(p)
    found = pk.check_bounded(*_encode_bounded(p, spec, p.x, expected.nnz + 7))
    try:
        pk.check_bounded(*_encode_bounded(p, spec, p.x, expected.nnz - 1))
        missed = 1.0
    except OverflowError:
        missed = 0.0
    unreported = Finding("overflows that were not reported", missed, 0)
    return Result((checks.same_bits(tensors(found), tensors(expected)), unreported))


def _captured(bench: Bench, spec: Encode) -> Result:
    """Replayed on other tokens than it was captured with."""
    if not bench.on_gpu:
        return Result(skipped="graphs are captured on a GPU only")
    p = bench.problem
    expected = spec.run(p, p.xs[-1])
    x = p.x.clone()
    replay = _capture(lambda: _encode_bounded(p, spec, x, expected.nnz + p.size.n))
    x.copy_(p.xs[-1])
    found = pk.check_bounded(*replay())
    return Result((checks.same_bits(tensors(found), tensors(expected)),))


def _capture(run: Callable[[], Bounded]) -> Callable[[], Bounded]:
    """Warm up on a side stream as capture asks, then record; returns the replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Bounded:
        graph.replay()
        return results

    return replay


def _encode_bounded(p: Problem, spec: Encode, x: Tensor, capacity: int) -> Bounded:
    return pk.encode_bounded(x, p.weights, capacity=capacity, **spec.arguments(p))


def _compiled(bench: Bench, spec: Encode) -> Result:
    p = bench.problem

    def reconstruct(x: Tensor) -> Tensor:
        return pk.decode(spec.run(p, x), p.W_dec, p.b_dec)

    expected = reconstruct(p.x)
    found = torch.compile(reconstruct, fullgraph=True, backend=bench.backend)(p.x)
    return Result((checks.same_bits((found,), (expected,)), checks.finite(found)))

"""The same bits twice, and for the exact encode also when the batch is cut."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

import patchsae_kernels as pk
from benches.gpu.bench import Bench
from benches.gpu.records import Item, Result
from benches.gpu.stages.correctness import encodes
from patchsae.bench import checks
from patchsae.bench.encodes import Encode
from patchsae.bench.inputs import TAU, Problem
from patchsae_kernels import servers


def items(bench: Bench) -> Iterator[Item]:
    for spec in encodes(bench.size):
        yield Item(f"encode {spec.name}, twice", functools.partial(_twice, bench, _encoded(spec)))
    for spec in encodes(bench.size):
        if spec.precision == "exact" and spec.activation != "batchtopk":
            yield Item(f"encode {spec.name}, cut in two", functools.partial(_cut, bench, spec))
    for name, op in _OPS.items():
        yield Item(f"{name}, twice", functools.partial(_twice, bench, op))


def _twice(bench: Bench, op: Callable[[Problem], tuple[Tensor, ...]]) -> Result:
    return Result((checks.same_bits(op(bench.problem), op(bench.problem)),))


def _cut(bench: Bench, spec: Encode) -> Result:
    """At a token that is no multiple of any tile."""
    if not servers.has_triton(bench.device):
        return Result(skipped="the reference serves this device, whose product is the vendor's")
    p = bench.problem
    first = 2 * p.size.n // 5 | 1
    parts = [spec.run(p, x) for x in (p.x[:first], p.x[first:])]
    return Result((checks.same_bits(_csr(spec.run(p)), _csr(pk.SparseLatents.cat(parts))),))


def _encoded(spec: Encode) -> Callable[[Problem], tuple[Tensor, ...]]:
    return lambda p: _csr(spec.run(p))


def _csr(z: pk.SparseLatents) -> tuple[Tensor, ...]:
    return z.values, z.indices, z.indptr


def _statistics(p: Problem) -> tuple[Any, ...]:
    s = pk.latent_stats(p.z, p.size.tokens, TAU, p.labels, p.size.classes)
    return s.sums, s.counts, s.image_counts, s.max_values, s.max_position, s.class_counts


_OPS: dict[str, Callable[[Problem], tuple[Any, ...]]] = {
    "decode, fp32": lambda p: (pk.decode(p.z, p.W_dec, p.b_dec),),
    "decode, bf16": lambda p: (pk.decode(p.z, p.W_dec_bf16, p.b_dec),),
    "decode_masked": lambda p: (pk.decode_masked(p.z, p.keep, p.W_dec, p.b_dec, p.class_ids),),
    "decode_sweep": lambda p: pk.decode_sweep(p.z, p.rank, p.size.sweep, p.W_dec, p.b_dec, p.class_ids),
    "latent_stats": _statistics,
    "reconstruct": lambda p: tuple(Encode("relu", "exact").reconstruct(p, p.W_dec)),
}

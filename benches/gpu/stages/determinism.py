"""The same bits twice, and for the exact encode also when the batch is cut."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

import patchsae_kernels as pk
from benches.gpu.bench import Bench
from benches.gpu.records import Item, Result
from patchsae.bench import checks, ours
from patchsae.bench.case import Case
from patchsae.bench.encodes import Encode
from patchsae_kernels import servers


def items(bench: Bench) -> Iterator[Item]:
    for case in ours.every(bench.size):
        yield Item(f"{case.name}, twice", functools.partial(_twice, bench, case))
    for spec in ours.encodes(bench.size):
        if spec.precision == "exact" and spec.activation != "batchtopk":
            yield Item(f"encode {spec.name}, cut in two", functools.partial(_cut, bench, spec))


def _twice(bench: Bench, case: Case) -> Result:
    first, second = (tensors(case.ours.run(bench.problem, 0)) for _ in range(2))
    return Result((checks.same_bits(first, second),))


def _cut(bench: Bench, spec: Encode) -> Result:
    """At a token that is no multiple of any tile."""
    if not servers.has_triton(bench.device):
        return Result(skipped="the reference serves this device, whose product is the vendor's")
    p = bench.problem
    first = 2 * p.size.n // 5 | 1
    parts = [spec.run(p, x) for x in (p.x[:first], p.x[first:])]
    return Result((checks.same_bits(tensors(spec.run(p)), tensors(pk.SparseLatents.cat(parts))),))


def tensors(found: Any) -> tuple[Tensor, ...]:
    """What an op returned."""
    if isinstance(found, pk.SparseLatents):
        return found.values, found.indices, found.indptr
    if isinstance(found, pk.LatentStats):
        return tuple(part for part in vars(found).values() if isinstance(part, Tensor))
    return (found,) if isinstance(found, Tensor) else tuple(found)

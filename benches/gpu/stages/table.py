"""The benchmark table: every line checked and measured."""

from __future__ import annotations

from collections.abc import Iterator

from benches.gpu.bench import Bench
from benches.gpu.lines import table
from benches.gpu.measure import measure_case
from benches.gpu.records import Item


def items(bench: Bench) -> Iterator[Item]:
    for case in table(bench.size, bench.backend):
        yield Item(case.name, lambda case=case: measure_case(case, bench.problem, bench))

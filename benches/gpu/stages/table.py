"""The benchmark table: every line checked and measured."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from benches.gpu.bench import Bench
from benches.gpu.lines import Line, table
from benches.gpu.measure import measure_line
from benches.gpu.records import Item, Result


def items(bench: Bench) -> Iterator[Item]:
    for line in table(bench.size, bench.backend):
        yield Item(line.name, functools.partial(_measure, bench, line))


def _measure(bench: Bench, line: Line) -> Result:
    try:
        return measure_line(line, bench.problem, bench)
    finally:
        bench.release()

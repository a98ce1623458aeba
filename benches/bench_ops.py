"""pytest-benchmark over the cases of `patchsae bench`: ``pytest benches --benchmark-only``.

Every case is checked against plain PyTorch before it is timed; ours and the baseline share a group in the output.
"""

from __future__ import annotations

import pytest

from patchsae.bench import cases
from patchsae.bench.case import Work
from patchsae.bench.inputs import SIZES, Inputs, make_inputs

CASES = cases.all_cases()


@pytest.fixture
def inputs() -> Inputs:
    return make_inputs(SIZES["small"])


@pytest.mark.parametrize("side", ["ours", "baseline"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_op(benchmark, inputs, case, side):
    work = case.baseline if side == "baseline" else Work("ours", case.ours)
    case.check(inputs, case.ours(inputs), case.baseline.run(inputs))
    benchmark.group = case.name
    benchmark.name = f"{case.name}: {work.name}"
    benchmark(work.run, inputs)

"""pytest-benchmark over the cases of `patchsae bench`: ``pytest benches --benchmark-only``.

Every case is checked against plain PyTorch before it is timed; ours and the baseline share a group in the output.
"""

from __future__ import annotations

import pytest

from patchsae.bench import cases

CASES = cases.all_cases()


@pytest.fixture(scope="module")
def inputs() -> cases.Inputs:
    return cases.make_inputs(cases.SIZES["small"])


@pytest.mark.parametrize("side", ["ours", "baseline"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_op(benchmark, inputs, case, side):
    work = case.baseline if side == "baseline" else cases.Work("ours", case.ours)
    case.check(inputs, case.ours(inputs), case.baseline.run(inputs))
    benchmark.group = case.name
    benchmark.name = f"{case.name}: {work.name}"
    benchmark(work.run, inputs)

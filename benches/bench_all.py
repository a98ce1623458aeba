"""pytest-benchmark over every case of `python -m benches`, at small sizes: ``pytest benches --benchmark-only``.

Each is checked against plain PyTorch before it is timed; ours and the baseline share a group in the output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.extraction import EXTRACTION, EXTRACTION_BF16
from benches.masking import MASKING
from benches.training import Training, training_cases
from benches.vit import build_case
from patchsae.bench.case import Case
from patchsae.bench.cases import all_cases
from patchsae.bench.findings import faults
from patchsae.bench.inputs import Problem, make_problem
from patchsae.bench.measure import checked
from patchsae.bench.sizes import SIZES

problem = cache(lambda: make_problem(SIZES["small"]))
end_to_end = cache(lambda: build_case(images=1))


def fresh() -> Problem:
    problem().release()
    return problem()


OPS = [(case, fresh) for case in all_cases()]
TRAINING = [
    (case, lambda config=config, start=start: Training(problem(), config, start))
    for case, config, start in training_cases().values()
]
END_TO_END = [(case, end_to_end) for case in (EXTRACTION, EXTRACTION_BF16, MASKING)]


@pytest.mark.parametrize("side", ["ours", "baseline"])
@pytest.mark.parametrize(("case", "inputs"), OPS + TRAINING + END_TO_END, ids=lambda each: getattr(each, "name", ""))
def test_case(benchmark: BenchmarkFixture, case: Case, inputs: Callable[[], Any], side: str) -> None:
    given = inputs()
    assert not faults(checked(case, given))
    work = case.ours if side == "ours" else case.opponents[0].side
    benchmark.group, benchmark.name = case.name, f"{case.name}: {work.label}"
    if (case, inputs) in END_TO_END:
        benchmark.pedantic(work.run, (given, 0), rounds=1)
    else:
        benchmark(work.run, given, 0)

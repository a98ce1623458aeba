"""`python -m tests.gate [WORD ...]`: the table of all kernels, or of the calls whose names hold one of the words."""

from __future__ import annotations

import sys
from itertools import chain

from tests.gate.calls import CALLS
from tests.gate.cases import Case, cases
from tests.gate.compiling import Resources, compile_all, complaints, temporary_cache
from tests.gate.parts import PARTS

ROW = "{:32} {:7} {:>5} {:>6} {:>6} {:>7} {:16} {}"


def main(words: list[str]) -> int:
    calls = [call for call in CALLS if not words or any(word in call.name for word in words)]
    print(ROW.format("kernel", "target", "regs", "stack", "spills", "shared", "product", "configuration"))
    all_cases = sorted(chain.from_iterable(cases(part, calls) for part in PARTS), key=lambda case: case.name)
    refused: list[str] = []
    with temporary_cache():
        for case, used in compile_all(all_cases):
            print(row(case, used), flush=True)
            refused += complaints(case, used)
    print(f"{len(all_cases)} cases, {len(refused)} refused", *refused, sep="\n")
    return 1 if refused else 0


def row(case: Case, used: Resources) -> str:
    numbers = (used.registers, used.stack, used.spills, used.shared, used.product)
    return ROW.format(case.name, case.part.name, *numbers, case.configuration)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m tests.gate [WORD ...]`: the table of all kernels, or of the calls whose names hold one of the words.

Without a word a kernel of the package that no call for every part starts is refused as well.

`python -m tests.gate --record`: write what the kernels use at the paper's shape, see `tests.gate.recorded`.
"""

from __future__ import annotations

import sys
from itertools import chain

from tests.gate import recorded, shipped
from tests.gate.arguments import Call
from tests.gate.calls import CALLS
from tests.gate.cases import Case, cases
from tests.gate.compiling import Resources, compile_all, temporary_cache
from tests.gate.parts import PARTS

ROW = "{:32} {:7} {:>5} {:>6} {:>6} {:>7} {:16} {}"


def main(words: list[str]) -> int:
    if words == ["--record"]:
        return record()
    calls = [call for call in CALLS if not words or any(word in call.name for word in words)]
    papers = set(at_the_papers_shape(calls))
    print(ROW.format("kernel", "target", "regs", "stack", "spills", "shared", "product", "configuration"))
    everywhere = every_case([call for call in calls if not call.part])
    somewhere = every_case([call for call in calls if call.part])
    found = sorted(dict.fromkeys([*everywhere, *somewhere]), key=lambda case: case.name)
    refused = [] if words else shipped.complaints(everywhere)
    with temporary_cache():
        for case, used in compile_all(found):
            print(row(case, used), flush=True)
            refused += recorded.refusals(case, used, case in papers)
    print(*refused, f"{len(found)} cases, {len(refused)} refused", sep="\n")
    return 1 if refused else 0


def record() -> int:
    found = at_the_papers_shape(CALLS)
    with temporary_cache():
        recorded.write(compile_all(found))
    print(f"{len(found)} cases recorded in {recorded.FILE.name}")
    return 0


def at_the_papers_shape(calls: list[Call] | tuple[Call, ...]) -> list[Case]:
    return every_case([call for call in calls if not call.slow])


def every_case(calls: list[Call]) -> list[Case]:
    return list(chain.from_iterable(cases(part, calls) for part in PARTS))


def row(case: Case, used: Resources) -> str:
    numbers = (used.registers, used.stack, used.spills, used.shared, used.product)
    return ROW.format(case.name, case.part.name, *numbers, case.configuration)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

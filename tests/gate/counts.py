"""`python -m tests.gate.counts [WORD ...]`: instructions of the kernels at the paper's shape on sm_90, by class.

WORD: only the calls whose names hold one of the words. Each instruction is counted once, however often it runs.
"""

from __future__ import annotations

import re
import sys

from tests.gate.calls import CALLS
from tests.gate.cases import Case, cases
from tests.gate.compiling import compile_case, temporary_cache
from tests.gate.machine_code import CLASSES, by_class, instructions
from tests.gate.parts import PARTS

SM_90 = next(part for part in PARTS if part.name == "sm_90")
ROW = "{:32}" + " {:>7}" * (len(CLASSES) + 1) + "  {}"


def main(words: list[str]) -> int:
    calls = [call for call in CALLS if not call.slow and (not words or any(word in call.name for word in words))]
    print(ROW.format("kernel", *CLASSES, "all", "types and constants"))
    with temporary_cache():
        for case in sorted(cases(SM_90, calls), key=lambda case: case.name):
            print(ROW.format(case.name, *by_class(instructions(compile_case(case))).values(), kind(case)), flush=True)
    return 0


def kind(case: Case) -> str:
    """What tells the cases of a kernel apart: types of its pointers, and constants."""
    types = re.findall(r":\*(\w+)|:tensordesc<(\w+\[[\d, ]+\])", case.configuration)
    constants = re.findall(r"\b[A-Z]\w*=\w+", case.configuration)
    return " ".join([",".join(map("".join, types)), *constants])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

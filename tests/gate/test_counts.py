"""Instructions by class, from machine code that is known and from a kernel of which it is known what it must hold."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.gate import counts
from tests.gate.machine_code import INSTRUCTION, by_class

SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                          /* 0x00000a00ff017b82 */
                                                                                   /* 0x000ff00000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;                /* 0x00011c00ff0e7b82 */
        /*0020*/              @UP1 LDG.E R8, [R2.64] ;                             /* 0x0000000000157919 */
        /*0030*/                   FFMA R4, R5, R6, R7 ;                           /* 0x00000000003f782f */
        /*0040*/                   F2FP.BF16.F32.PACK_AB R4, R5, R6 ;              /* 0x00000000003f782f */
        /*1050*/                   F2F.BF16.F32 R4, R5 ;                           /* 0x00000000003f782f */
"""


def test_instructions_are_read_with_their_suffixes_and_without_their_predicates() -> None:
    assert INSTRUCTION.findall(SASS) == [
        "LDC",
        "LDG.E.128.CONSTANT",
        "LDG.E",
        "FFMA",
        "F2FP.BF16.F32.PACK_AB",
        "F2F.BF16.F32",
    ]


def test_classes_do_not_overlap() -> None:
    found = Counter(INSTRUCTION.findall(SASS))
    expected = {"LDG.128": 1, "LDG.32": 1, "FP32": 1, "F2FP": 1, "F2F": 1, "all": 6}
    assert {name: n for name, n in by_class(found).items() if n} == expected


def test_the_command_prints_a_row_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert counts.main(["fused_maxima float16"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["kernel", "HGMMA", "FP32"]
    (row,) = rows
    assert row.startswith("product_kernel")
    assert int(row.split()[1]) > 0
    assert "fp16[128, 64]" in row

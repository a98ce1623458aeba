"""Autocast and the switches of the process change no bit of what the Triton implementations answer, either."""

from __future__ import annotations

import pytest

from tests.kernels.cases import make_case
from tests.kernels.contexts import CONTEXTS
from tests.kernels.every_op import EVERY_OP, assert_same_bits


@pytest.mark.parametrize("op", ["dense step", "dense step in fp32"])
def test_a_context_changes_no_bit_of_the_library_s_products(op: str) -> None:
    case = make_case(3, 6, 20, 40, bias=0.0)
    expected = EVERY_OP[op](case)
    for context in ("autocast to bfloat16", "float32 products in bfloat16", "the switch above", "float64 by default"):
        with CONTEXTS[context]():
            assert_same_bits(EVERY_OP[op](case), expected)

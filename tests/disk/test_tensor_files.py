"""Tensors of a file that are taken as float32: by the definition of finite, entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.disk.tensor_files import require_float32
from tests.examples import examples

LARGEST = torch.finfo(torch.float32).max
ENTRIES = st.sampled_from([0.0, 1.0, -1.0, LARGEST, -LARGEST, 1e39, -1e300, float("inf"), float("-inf"), float("nan")])


@examples(100)
@given(st.lists(ENTRIES, max_size=6), st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
def test_what_is_finite_in_float32_passes_and_the_rest_is_counted(entries: list[float], dtype: torch.dtype) -> None:
    given = torch.tensor(entries, dtype=torch.float64).to(dtype)
    wrong = sum(not abs(entry) <= LARGEST for entry in given.tolist())
    if wrong:
        with pytest.raises(ValueError, match=f"x has {wrong} entries that are NaN or infinite"):
            require_float32("x", given)
    else:
        assert torch.equal(require_float32("x", given), given.float())


def test_finite_numbers_may_have_a_sum_that_is_not() -> None:
    values = torch.full((3,), LARGEST)
    assert not values.sum().isfinite()
    assert require_float32("x", values) is values

"""Numbers in words: every one is true to its digits, and two that differ by more than rounding look different."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae import words

FRACTIONS = st.floats(-1e8, 1e8, allow_subnormal=False).filter(lambda value: value == 0 or abs(value) > 1e-8)


def read(text: str) -> float:
    return float(text.replace(",", ""))


@given(FRACTIONS)
def test_a_number_keeps_four_significant_digits_and_shows_no_other(value: float) -> None:
    text = words.number(value)
    assert read(text) == pytest.approx(value, rel=6e-4)
    assert text not in ("-0", "-0.0")
    assert "." not in text or "e" in text or not text.endswith("0")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5"),
        (0.9999999999999988, "1"),
        (-0.0, "0"),
        (9999.7, "10,000"),
        (1234.4, "1,234"),
        (1234, "1,234"),
        (np.float32(0.25), "0.25"),
        (torch.tensor(7), "7"),
        (None, "–"),
        (math.nan, "–"),
        (True, "yes"),
        ([1, 0.5], "1, 0.5"),
        ("as it is", "as it is"),
    ],
)
def test_one_value(value: object, text: str) -> None:
    assert words.number(value) == text


@given(st.lists(FRACTIONS | st.integers(-1000, 1000) | st.none(), min_size=1, max_size=6))
def test_a_column_is_true_to_its_digits(values: list[float | None]) -> None:
    largest = max((abs(value) for value in values if value is not None), default=0)
    for value, text in zip(values, words.numbers(values), strict=True):
        if value is None:
            assert text == "–"
        else:
            assert read(text) == pytest.approx(value, abs=6e-4 * largest, rel=6e-4)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([5.0, 5.0], ["5", "5"]),
        ([5.0, 4.25], ["5.00", "4.25"]),
        ([0.026, 0.02331], ["0.02600", "0.02331"]),
        ([0.0, -0.00001, 1.5], ["0", "-1e-05", "1.5"]),
        ([-0.0, 0.5], ["0", "0.5"]),
        ([12345.6, 0.5], ["12,346", "0.5"]),
        ([math.nan, 0.5, 2], ["–", "0.5", "2"]),
    ],
)
def test_a_column(values: list[float], texts: list[str]) -> None:
    assert words.numbers(values) == texts


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.682, "68.2%"),
        (1, "100.0%"),
        (0.0, "0%"),
        (-0.0, "0%"),
        (0.00002, "0.002%"),
        (2e-9, "2e-07%"),
        (-0.0001, "-0.01%"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_per_cent(share: float | None, text: str) -> None:
    assert words.percent(share) == text


def test_a_difference_has_its_sign() -> None:
    assert [words.signed(value, 2) for value in (1.204, -49, 0.0, -0.001)] == ["+1.20", "-49.00", "0.00", "0.00"]


def test_one_of_a_thing_is_singular() -> None:
    assert [words.counted(n, "shot") for n in (0, 1, 2_000)] == ["0 shots", "1 shot", "2,000 shots"]
    assert words.counted(1, "class", "classes") == "1 class"
    assert words.counted(2, "class", "classes") == "2 classes"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (-0.0, "0 B"),
        (999, "999 B"),
        (999.6e3, "1 MB"),
        (302e6, "302 MB"),
        (2.71e9, "2.71 GB"),
        (4.4e15, "4.4 PB"),
        (5e18, "5,000 PB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-0.0, "0 s"),
        (0.0032, "3.2 ms"),
        (0.0996, "0.1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59, "59 s"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (19_700, "5 h 28 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text

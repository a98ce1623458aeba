"""Every attack for a second; `python -m tests.fuzz --minutes 60` goes on for an hour."""

import time

import pytest

from tests.fuzz.attacks import attacks, try_case

BUDGET = 1.0  # seconds
ALL = attacks()


@pytest.mark.parametrize("name", ALL)
def test_a_second_of(name):
    end, number = time.monotonic() + BUDGET, 0
    while number < 3 or time.monotonic() < end:
        try_case(name, 0, number, ALL[name])
        number += 1

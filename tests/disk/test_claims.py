"""Law: a number that a file states is a whole number in its range, or it is refused by name; nothing is allocated."""

import math
import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchsae.disk.claims import FalseClaim, available_memory, require_held, require_memory, whole_number

ANYTHING = st.one_of(
    st.integers(), st.floats(), st.text(max_size=3), st.booleans(), st.none(), st.lists(st.integers(), max_size=2)
)


@given(ANYTHING, st.integers(0, 1000))
def test_whole_numbers_in_the_range_pass_and_nothing_else(value, most):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number and math.isfinite(value) and value == int(value) and 0 <= value <= most
    if fits:
        assert whole_number("a.json", "k", value, most) == int(value)
        assert type(whole_number("a.json", "k", value, most)) is int
    else:
        with pytest.raises(FalseClaim, match=r"^a\.json: k is ") as error:
            whole_number("a.json", "k", value, most)
        assert len(str(error.value)) < 200


def test_what_is_not_held_is_not_read():
    require_held("a.pt", "W_enc", 100, 100)
    with pytest.raises(FalseClaim, match=r"a\.pt: W_enc claims 101 bytes and the file holds 100"):
        require_held("a.pt", "W_enc", 101, 100)


def test_what_does_not_fit_is_said_with_both_sizes():
    require_memory("a SAE", 1000)
    with pytest.raises(FalseClaim, match=r"a SAE needs 1,000 PB of memory; .* are available"):
        require_memory("a SAE", 10**18)


def test_the_processs_own_limit_counts():
    code = "from patchsae.disk.claims import available_memory; print(available_memory())"
    limit = 3 * 2**30

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limited, check=True)
    assert 0 < int(done.stdout) < min(limit, available_memory() + limit)

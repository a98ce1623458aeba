"""How many examples of hypothesis a law is tried on, where it is not the number of the whole suite."""

from typing import Any

from hypothesis import settings

_SUITE = 40


def examples(count: int, **others: Any) -> settings:
    """`count` under the profile of the suite, in proportion under another one (`make check` tries a fifth)."""
    return settings(max_examples=max(1, count * settings().max_examples // _SUITE), **others)

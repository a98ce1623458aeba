"""What a benchmark case is: an op, what it is compared with, and what nothing can pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Something to time, and what to call it."""

    name: str
    run: Callable[[Any], Any]


@dataclass(frozen=True)
class Case:
    """One op: ours, the dense baseline, and the floor that no implementation can pass.

    Attributes:
        floor: does only what cannot be left out (a product by the vendor's library, or a copy of the bytes that must
            move); the share of the limit is its time over ours.
        check: raises AssertionError unless the results of ours and of the baseline agree.
    """

    name: str
    ours: Callable[[Any], Any]
    baseline: Work
    floor: Work
    check: Callable[[Any, Any, Any], None]

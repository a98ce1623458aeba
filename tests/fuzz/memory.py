"""The memory that a case takes, as the system counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def at_most(count: float, what: str) -> Iterator[None]:
    """AssertionError where the block takes more than `count` bytes at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of the resident set begins anew
    before = _resident("VmRSS")
    try:
        yield
    finally:
        taken = _resident("VmHWM") - before
        assert taken < count, f"{what}: took {taken / 1e6:.0f} MB"


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

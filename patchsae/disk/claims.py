"""What a file says about itself, held against what it holds: no memory is taken because a file asks for it.

Whoever reads a size, a count, a label or a shape from a file, a run or a checkpoint passes it through here before
anything is allocated by it.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from patchsae.words import size


class FalseClaim(ValueError):
    """A file claims more than it holds, or more than this machine has."""


def whole_number(path: str | os.PathLike[str], what: str, value: Any, most: int, least: int = 0) -> int:
    """`value`, which `path` states as `what`, as an int in least..most.

    Raises FalseClaim for anything else: text, NaN, a fraction, true, a number out of the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or int_of(value) is None:
        raise FalseClaim(f"{path}: {what} is {_shown(value)}; expected a whole number")
    number = int(value)
    if not least <= number <= most:
        raise FalseClaim(f"{path}: {what} is {_shown(number)}; expected {least:,} .. {most:,}")
    return number


def int_of(value: float) -> int | None:
    """`value` as an int, None where it is no whole number (infinity, 0.5)."""
    try:
        return int(value) if int(value) == value else None
    except (OverflowError, ValueError):
        return None


def require_held(path: str | os.PathLike[str], what: str, claimed: int, held: int) -> None:
    """Raise FalseClaim where `what` of `path` takes `claimed` bytes in memory, more than the `held` bytes behind it."""
    if claimed > held:
        raise FalseClaim(
            f"{path}: {what} claims {claimed:,} bytes and the file holds {held:,} for it; nothing was read"
        )


def require_memory(what: str, count: int) -> None:
    """Raise FalseClaim where `what` needs `count` bytes, more than this process may still take."""
    free = available_memory()
    if count > free:
        raise FalseClaim(f"{what} needs {size(count)} of memory; {size(free)} are available")


def available_memory() -> int:
    """Bytes that this process may still take: the least of the machine's, its control group's and its own limit."""
    limits = [_machine(), _control_group(), _address_space()]
    return max(0, min(limit for limit in limits if limit is not None))


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_group() -> int | None:
    try:
        most = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        cache = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return most - used + int(cache.get("inactive_file", 0))


def _address_space() -> int | None:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return most - pages * os.sysconf("SC_PAGE_SIZE")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

"""`patchsae doctor`: what runs on this machine, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import patchsae_kernels as pk


def lines(description: dict[str, Any] | None = None) -> Iterator[str]:
    """The content of `patchsae_kernels.describe()` for people, a line each."""
    d = description or pk.describe()
    yield f"device     {d['device']} ({d['cpu']}, {d['threads']} threads)"
    native = d["native"]
    yield f"native     {'loaded, ' + native['why'] if native['available'] else 'absent: ' + native['why']}"
    versions = ", ".join(f"{name} {version}" for name, version in d["versions"].items())
    yield f"versions   python {d['python']}, {versions}"
    yield "ops"
    width = max(map(len, d["ops"]))
    for name, implementation in d["ops"].items():
        yield f"  {name:<{width}}  {implementation}"

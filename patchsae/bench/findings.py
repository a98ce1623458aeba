"""Numbers that must not exceed their limits, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A number that must not exceed its limit; NaN never passes."""

    name: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.value <= self.limit


Findings = tuple[Finding, ...]


def passed(findings: Iterable[Finding]) -> bool:
    return all(finding.ok for finding in findings)


def faults(findings: Iterable[Finding]) -> str:
    """Those beyond their limits, in words; "" where there are none."""
    return "; ".join(f"{f.name} is {f.value:.3g}, limit {f.limit:.3g}" for f in findings if not f.ok)


def as_json(document: Any) -> str:
    """Indented, NaN and infinities as strings."""
    return json.dumps(strict(document), indent=1, allow_nan=False) + "\n"


def strict(value: Any) -> Any:
    """The same with NaN and infinities as strings, so that any reader of JSON takes it."""
    if isinstance(value, dict):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

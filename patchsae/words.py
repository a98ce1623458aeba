"""Numbers as people read them: the one place that decides on digits, per cent, plurals, sizes and times."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

NOTHING = "–"
_DIGITS = 4  # significant ones of a fraction
_SPREAD = 1e3  # a column whose fractions lie further apart would lose the small ones in one number of decimals
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def number(value: Any) -> str:
    """One value: thousands separated, four significant digits without trailing zeros, a dash for None and NaN.

    Text stays as it is; of a list, every item.
    """
    value = _plain(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        whole = 999.95 <= abs(value) < 1e9
        return _unsigned_zero(f"{value:,.0f}" if whole else f"{value:.{_DIGITS}g}")
    return ", ".join(map(number, value)) if isinstance(value, list | tuple) else str(value)


def numbers(values: Iterable[Any]) -> list[str]:
    """A column of values as `number`, its fractions with one number of decimals, so that they compare at a glance.

    The largest has four significant digits; zeros that end all of them are left out, and so are those of zero itself.
    Fractions of very different sizes are written each for itself.
    """
    values = [_plain(value) for value in values]
    fractions = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    sizes = [abs(value) for value in fractions if value != 0]
    if not sizes or max(sizes) >= 1000 or min(sizes) * _SPREAD < max(sizes):
        return [number(value) for value in values]
    decimals = _DIGITS - 1 - math.floor(math.log10(max(sizes)))
    while decimals and all(f"{value:.{decimals}f}".endswith("0") for value in fractions):
        decimals -= 1
    return [fixed(v, decimals) if isinstance(v, float) and math.isfinite(v) and v else number(v) for v in values]


def fixed(value: float, decimals: int) -> str:
    """A value with so many decimals, thousands separated."""
    return _unsigned_zero(f"{value:,.{decimals}f}")


def signed(value: float, decimals: int) -> str:
    """A difference with so many decimals and its sign; none before zero."""
    text = fixed(value, decimals)
    return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


def percent(share: float | None, decimals: int = 1) -> str:
    """A share in per cent: "68.2%"; one above 0 is never written as 0, so it may have more decimals."""
    if share is None or math.isnan(share):
        return NOTHING
    if 0 < abs(100 * share) < 0.5 * 10**-decimals:
        return f"{100 * share:.1g}%" if abs(share) >= 1e-6 else f"{100 * share:.0e}%"
    return fixed(100 * share, decimals if share else 0) + "%"


def counted(count: int, noun: str, plural: str = "") -> str:
    """How many of what: "1 image", "2,000 images"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def size(count: float) -> str:
    """Bytes with three significant digits: "302 MB", "2.71 GB"."""
    power = 0
    while power < len(_SIZES) - 1 and float(f"{abs(count) / 1000**power:.3g}") >= 1000:
        power += 1
    scaled = count / 1000**power
    return _unsigned_zero(f"{scaled:,.0f}" if abs(scaled) >= 99.95 else f"{scaled:.3g}") + f" {_SIZES[power]}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 ms", "8.2 s", "3 min 20 s", "5 h 28 min", "2 d 3 h"."""
    whole = round(seconds)
    for unit, big, small_unit, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // small_unit
            return f"{whole // unit} {big}" + (f" {rest} {small}" if rest else "")
    if 0 < seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.1f} s" if 0 < seconds < 9.95 else f"{whole} s"


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _unsigned_zero(text: str) -> str:
    return text if any(digit in text for digit in "123456789") or "inf" in text else text.removeprefix("-")

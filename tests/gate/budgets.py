"""What the machine code of a kernel may hold on sm_90: what the time model of the kernels rests on."""

from __future__ import annotations

from collections import Counter

from tests.gate.arguments import PAPER
from tests.gate.cases import Case
from tests.gate.machine_code import by_class

PART = "sm_90"
WIDE_LOADS = {
    "decode_kernel": 16,
    "decode_sweep_kernel": 16,
    "rescore_kernel": 16,
    "latent_gradients_kernel": 6,
}
"""128-bit loads that a kernel has at the paper's width: what gathers rows is bound by the bytes a load brings."""


def concern(case: Case, half_product: bool) -> bool:
    """Whether the machine code of a case is looked at."""
    return case.part.name == PART and (half_product or least_wide_loads(case) > 0)


def least_wide_loads(case: Case) -> int:
    return WIDE_LOADS.get(case.name, 0) if case.width == PAPER.width else 0


def complaints(case: Case, found: Counter[str], half_product: bool) -> list[str]:
    """Why a case may not be shipped; nothing where no code was looked at."""
    if not found:
        return []
    counts, reasons = by_class(found), []
    if half_product and counts["F2F"]:
        reasons.append(f"{counts['F2F']} conversions of one number (F2F) beside its product; expected pairs (F2FP)")
    least = least_wide_loads(case)
    if counts["LDG.128"] < least:
        reasons.append(f"{counts['LDG.128']} loads of 128 bits; expected {least} or more")
    return reasons

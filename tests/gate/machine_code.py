"""Instructions of a compiled kernel, from NVIDIA's disassembler in the Triton package."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from triton import knobs

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*(?:\.\w+)*)", re.MULTILINE)
CLASSES = {
    "HGMMA": r"HGMMA\b",
    "FP32": r"(FFMA|FADD|FMUL|FMNMX)\b",
    "F2F": r"F2F\b",
    "F2FP": r"F2FP\b",
    "LDG.128": r"LDG\..*\b128\b",
    "LDG.64": r"LDG\..*\b64\b",
    "LDG.32": r"LDG\.(?!.*\b(128|64)\b)",
    "STG": r"STG\b",
    "TMA": r"UTMA(LDG|STG)\b",
    "LDS": r"LDSM?\b",
    "STS": r"STSM?\b",
    "SHFL": r"SHFL\b",
    "BAR": r"BAR\b",
}
"""Patterns of the instructions that the time model goes by; 32 stands for 32 bits and fewer."""


def instructions(compiled: Any) -> Counter[str]:
    """How often each instruction stands in the code, by its full name."""
    return Counter(INSTRUCTION.findall(cuobjdump(compiled, "-sass")))


def by_class(found: Counter[str]) -> dict[str, int]:
    """Counts of `CLASSES`, and of all instructions."""
    counts = {name: sum(n for word, n in found.items() if re.match(pattern, word)) for name, pattern in CLASSES.items()}
    return {**counts, "all": found.total()}


def waits_for_every_product(found: Counter[str]) -> bool:
    """Each group of products begins with an ARRIVE; ptxas gives each one its own where it cannot overlap them."""
    products, groups = (sum(n for word, n in found.items() if word.startswith(s)) for s in ("HGMMA.", "WARPGROUP.ARR"))
    return products > 1 and groups >= products


def registers_and_stack(compiled: Any) -> tuple[int, int]:
    """Registers of a thread; bytes of its stack and local memory, where spills are."""
    text = cuobjdump(compiled, "-res-usage")
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return used["REG"], used["STACK"] + used["LOCAL"]


def cuobjdump(compiled: Any, option: str) -> str:
    """What the disassembler prints about a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, option, str(cubin)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

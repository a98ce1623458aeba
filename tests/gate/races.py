"""Which kernels load what the same program stored, read from Triton's IR for a part (TTGIR).

The threads of a program do not run in step: what one of them stored another may load only behind a barrier, and neither
the interpreter nor a lucky run shows that one is missing. So the gate holds the list of kernels that read back at all,
and how many barriers each of them has.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from triton.backends.compiler import GPUTarget

from tests.gate.mlir import Module

READ_BACK = {"decode_sweep_kernel": 1, "latent_stats_image_kernel": 2}
"""Barriers that stand between a store and a later load of the same memory, in each kernel that has such a load: at the
paper's shape; where an image is one token, no token's records wait for those of the one before."""

BARRIERS = {"gpu.barrier", "ttg.barrier", "ttg.local_barrier"}
LOOPS = {"scf.for", "scf.while"}
LOADS = re.compile(r"load|atomic|gather|global_to_local")
STORES = re.compile(r"store|atomic|scatter|local_to_global|tma_reduce")


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        place: in the order of the text.
        loops: places of the loops around it.
        arguments: numbers of the kernel's arguments that its addresses were computed from.
    """

    name: str
    place: int
    loops: frozenset[int]
    arguments: frozenset[int]

    def reaches(self, other: Operation) -> bool:
        """Whether the other can run after this one: it stands behind, or a loop around both comes round."""
        return self.place < other.place or bool(self.loops & other.loops)


def complaints(name: str, barriers: int | None) -> list[str]:
    """Why a kernel with these `barriers_of_read_back` may not be shipped."""
    if barriers is not None and name not in READ_BACK:
        return ["it loads what the same program stored; expected no such load, or its name in READ_BACK (races.py)"]
    return ["no barrier between its stores and later loads of the same memory; expected one"] if barriers == 0 else []


def at_the_papers_shape(name: str, barriers: int | None) -> list[str]:
    """What is wrong where a kernel compiled at the paper's shape has other barriers than `READ_BACK` gives it."""
    expected = READ_BACK.get(name)
    if barriers == expected:
        return []
    return [f"{barriers} barriers between its stores and later loads of the same memory; READ_BACK has {expected}"]


def barriers_of_read_back(ttgir: str, target: GPUTarget) -> int | None:
    """Barriers that a program passes between a store and a later load through the same argument; None: no such load."""
    found = operations(ttgir, target)
    stores, loads = ([one for one in found if one.arguments and names.search(one.name)] for names in (STORES, LOADS))
    pairs = [
        (a, b) for a, b in product(stores, loads) if a.arguments & b.arguments and a.reaches(b) and not atomic(a, b)
    ]
    barriers = [one for one in found if one.name in BARRIERS]
    return sum(any(a.reaches(c) and c.reaches(b) for a, b in pairs) for c in barriers) if pairs else None


def atomic(*accesses: Operation) -> bool:
    """Whether they may meet in any order."""
    return all("atomic" in access.name for access in accesses)


def operations(ttgir: str, target: GPUTarget) -> list[Operation]:
    """Those of a kernel, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ttgir"
        path.write_text(ttgir)
        module = Module(path, target)
    return [
        Operation(op.get_name(), place, frozenset(module.around(place, LOOPS)), module.arguments(op))
        for place, op in enumerate(module.operations)
    ]

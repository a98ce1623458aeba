"""Compile a case without a GPU and read from the result what it would use of one."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from tests.gate import budgets, races
from tests.gate.cases import Case
from tests.gate.machine_code import instructions, registers_and_stack, waits_for_every_product

PARSING = Lock()
PRODUCT_INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync", "v_mfma")


class LockedSource(ASTSource):
    """A kernel's source that one thread at a time parses: ``ast.parse`` of Python 3.11 fails at random in threads."""

    def make_ir(self, *args: Any) -> Any:
        with PARSING:
            return super().make_ir(*args)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses.

    Attributes:
        registers: per thread (AMD: vector registers).
        stack: bytes of local memory per thread.
        spills: registers kept in memory (AMD; on NVIDIA they count as stack).
        shared: bytes of shared memory per program.
        scratch: bytes of global memory per program that a caller would have to allocate.
        product: the instruction that products became, empty without one.
        half_product: whether the source multiplies float16 or bfloat16 tiles.
        read_back: barriers between a store and a later load of the same memory; None: there is no such load.
        code: instructions of the machine code, where `budgets` concern it.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    scratch: int
    product: str
    half_product: bool
    read_back: int | None
    code: Counter[str]


@cache
def resources(case: Case) -> Resources:
    """Compile ``case``; equal cases are compiled once.

    Raises:
        Exception: whatever Triton raises for a kernel that does not compile for this part.
    """
    compiled = compile_case(case)
    on_nvidia = case.part.target.backend == "cuda"
    registers, stack, spills = (*registers_and_stack(compiled), 0) if on_nvidia else amd_usage(compiled)
    assembly = compiled.asm["ptx"] if on_nvidia else compiled.asm["amdgcn"]
    half_product = re.search(r"tt\.dot .*tensor<[\dx]+x(f16|bf16)> \*", compiled.asm["ttir"]) is not None
    return Resources(
        registers=registers,
        stack=stack,
        spills=spills,
        shared=compiled.metadata.shared,
        scratch=getattr(compiled.metadata, "global_scratch_size", 0),  # Triton 3.6 has none on AMD
        product=next((name for name in PRODUCT_INSTRUCTIONS if name in assembly), ""),
        half_product=half_product,
        read_back=races.barriers_of_read_back(compiled.asm["ttgir"], case.part.target),
        code=instructions(compiled) if budgets.concern(case, half_product) else Counter(),
    )


def compile_case(case: Case) -> Any:
    """Triton's compiled kernel."""
    source = LockedSource(case.kernel, case.signature, case.constants, case.attributes)
    return triton_compile(source, target=case.part.target, options=case.options)


def compile_all(cases: list[Case]) -> Iterator[tuple[Case, Resources]]:
    """Each case with its resources, in order; LLVM works outside the interpreter lock, so threads help."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from zip(cases, pool.map(resources, cases), strict=True)


def complaints(case: Case, used: Resources) -> list[str]:
    """Why ``case`` may not be shipped; empty if it may."""
    part, found = case.part, []
    if used.stack or used.spills:
        found.append(f"{used.spills} registers spilled, {used.stack} bytes of stack a thread; expected none")
    if used.shared > part.shared:
        found.append(f"{used.shared} bytes of shared memory; {part.name} has {part.shared} for a program")
    if used.scratch:
        found.append(f"{used.scratch} bytes of global scratch, which nobody allocates")
    if part.products and used.half_product and used.product != part.products:
        found.append(f"its product became {used.product or 'plain arithmetic'}; expected {part.products}")
    if waits_for_every_product(used.code):
        found.append("it waits for every wgmma before the next one (ptxas warning C75xx); expected one wait a step")
    found += races.complaints(case.name, used.read_back)
    found += budgets.complaints(case, used.code, used.half_product)
    return [f"{case.name} on {part.name}: {reason} ({case.configuration})" for reason in found]


@contextmanager
def temporary_cache() -> Iterator[None]:
    """Triton's cache in a folder that goes away: nothing is written elsewhere and nothing old is read."""
    with tempfile.TemporaryDirectory() as folder, cache_in(Path(folder)):
        yield


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Triton's cache in ``folder``."""
    before = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TRITON_CACHE_DIR"]
        if before is not None:
            os.environ["TRITON_CACHE_DIR"] = before


def amd_usage(compiled: Any) -> tuple[int, int, int]:
    """Vector registers, bytes of private memory, spilled registers: from the metadata in the assembly."""
    text = compiled.asm["amdgcn"]
    used = {name: int(value) for name, value in re.findall(r"^\s*(?:- )?\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    spills = used["vgpr_spill_count"] + used["sgpr_spill_count"]
    return used["vgpr_count"], used["private_segment_fixed_size"], spills

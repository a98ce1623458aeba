"""Compile a case without a GPU and read from the result what it would use of one."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from triton import knobs
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from tests.gate.cases import Case

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
        serialised: the machine code waits for every asynchronous product (wgmma) before the next one starts.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    scratch: int
    product: str
    half_product: bool
    serialised: bool


@cache
def resources(case: Case) -> Resources:
    """Compile ``case``; equal cases are compiled once.

    Raises:
        Exception: whatever Triton raises for a kernel that does not compile for this part.
    """
    source = LockedSource(case.kernel, case.signature, case.constants, case.attributes)
    compiled = triton_compile(source, target=case.part.target, options=case.options)
    on_nvidia = case.part.target.backend == "cuda"
    registers, stack, spills = nvidia_usage(compiled) if on_nvidia else amd_usage(compiled)
    assembly = compiled.asm["ptx"] if on_nvidia else compiled.asm["amdgcn"]
    return Resources(
        registers=registers,
        stack=stack,
        spills=spills,
        shared=compiled.metadata.shared,
        scratch=getattr(compiled.metadata, "global_scratch_size", 0),  # Triton 3.6 has none on AMD
        product=next((name for name in PRODUCT_INSTRUCTIONS if name in assembly), ""),
        serialised="wgmma.mma_async" in assembly and waits_for_every_product(cuobjdump(compiled, "-sass")),
        half_product=re.search(r"tt\.dot .*tensor<[\dx]+x(f16|bf16)> \*", compiled.asm["ttir"]) is not None,
    )


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
    if used.serialised:
        found.append("it waits for every wgmma before the next one (ptxas warning C75xx); expected one wait a step")
    return [f"{case.name} on {part.name}: {reason} ({case.configuration})" for reason in found]


@contextmanager
def temporary_cache() -> Iterator[None]:
    """Triton's cache in a folder that goes away: nothing is written elsewhere and nothing old is read."""
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["TRITON_CACHE_DIR"]
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


def nvidia_usage(compiled: Any) -> tuple[int, int, int]:
    """Registers, bytes of stack and local memory, 0: from the machine code, where spills are stack."""
    text = cuobjdump(compiled, "-res-usage")
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return used["REG"], used["STACK"] + used["LOCAL"], 0


def cuobjdump(compiled: Any, option: str) -> str:
    """What the disassembler in the triton package prints about a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, option, str(cubin)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def waits_for_every_product(sass: str) -> bool:
    """Each group of products begins with an ARRIVE; ptxas gives each one its own where it cannot overlap them."""
    products, groups = len(re.findall(r"\bHGMMA\b", sass)), len(re.findall(r"\bWARPGROUP\.ARRIVE\b", sass))
    return products > 1 and groups >= products


def amd_usage(compiled: Any) -> tuple[int, int, int]:
    """Vector registers, bytes of private memory, spilled registers: from the metadata in the assembly."""
    text = compiled.asm["amdgcn"]
    used = {name: int(value) for name, value in re.findall(r"^\s*(?:- )?\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    spills = used["vgpr_spill_count"] + used["sgpr_spill_count"]
    return used["vgpr_count"], used["private_segment_fixed_size"], spills

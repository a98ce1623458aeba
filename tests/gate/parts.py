"""The parts that every kernel is compiled for, and what a kernel may use of them."""

from __future__ import annotations

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class Part:
    """One GPU architecture.

    Attributes:
        name: key of its configurations in `patchsae_kernels.triton.tuning`.
        target: what Triton compiles for.
        shared: bytes of shared memory that one program may have.
        products: instruction that a product of float16 or bfloat16 must become; empty: any.
    """

    name: str
    target: GPUTarget
    shared: int
    products: str = ""


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD CDNA3 ISA guide (64 KB of LDS).
PARTS = (
    Part("sm_80", GPUTarget("cuda", 80, 32), 163 * 1024),
    Part("sm_90", GPUTarget("cuda", 90, 32), 227 * 1024, "wgmma.mma_async"),
    Part("sm_100", GPUTarget("cuda", 100, 32), 227 * 1024),
    Part("gfx942", GPUTarget("hip", "gfx942", 64), 64 * 1024),
)

"""The one place where a kernel is started, and a recorder that lists what would have been started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

FP_FUSION = True
"""``a * b + c`` may become one rounding. Said with every launch, for Triton's default differs between versions."""


@dataclass(frozen=True)
class Launch:
    """One recorded start of a kernel."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    """Runtime arguments in the order of the kernel's parameters."""
    options: dict[str, Any]
    """Compile-time constants of the kernel by name, with num_warps and num_stages where they were given."""


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded_launches", default=None)


def launch(kernel: Any, grid: tuple[int, ...], /, *args: Any, **options: Any) -> None:
    """Start ``kernel`` on ``grid``; an empty grid starts nothing.

    Args:
        kernel: function under ``@triton.jit``.
        grid: programs along each axis, 1 to 3 integers.
        args: runtime arguments: tensors on one device, ints, floats, TensorDescriptors (see ``descriptor``), None for
            a pointer that the kernel is compiled without.
        options: the kernel's ``tl.constexpr`` parameters by name, and num_warps, num_stages.
    """
    if 0 in grid:
        return
    recorded = _recorded.get()
    if recorded is None:
        kernel[grid](*args, enable_fp_fusion=FP_FUSION, **options)
    else:
        recorded.append(Launch(kernel, grid, args, {"enable_fp_fusion": FP_FUSION, **options}))


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Collect the launches made inside, in order, and start none of them: host code can be followed on meta tensors."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def descriptor(tensor: Tensor, block_shape: list[int]) -> TensorDescriptor:
    """Descriptor of ``tensor`` for block loads and stores of ``block_shape``; also of a meta tensor, while recording.

    The last dimension must be contiguous, the other strides multiples of 16 bytes, no dimension empty.
    """
    return TensorDescriptor.from_tensor(tensor, block_shape)

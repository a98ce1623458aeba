"""Every address that an interpreted program loads, stores or adds to lies within a tensor of its launch.

A mask that is missing reads or writes past the end of something. On a CPU that is mostly memory of this process, and
nothing is seen; on a GPU it is a fault, or another tensor's contents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import GridExecutor
from triton.runtime.interpreter import interpreter_builder as builder
from triton.tools.tensor_descriptor import TensorDescriptor


class OutOfBounds(AssertionError):
    """A program left the tensors that it was given."""


@contextmanager
def checked() -> Iterator[None]:
    """Within: a launch that leaves its tensors raises `OutOfBounds` (wrapped by the interpreter in its own error)."""
    ranges: list[tuple[int, int]] = []
    made = GridExecutor._init_args_hst

    def init_args(self: GridExecutor, args: Any, kwargs: Any) -> Any:
        found = made(self, args, kwargs)
        ranges[:] = sorted(extent for arg in [*found[0], *found[1].values()] for extent in _extents(arg))
        return found

    def load(ptrs: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        _check(ranges, ptrs, mask, "loads")
        return type(builder).create_masked_load(builder, ptrs, mask, *rest, **options)

    def store(ptrs: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        _check(ranges, ptrs, mask, "stores")
        return type(builder).create_masked_store(builder, ptrs, value, mask, *rest, **options)

    def add(op: Any, ptr: Any, val: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        _check(ranges, ptr, mask, "changes")
        return type(builder).create_atomic_rmw(builder, op, ptr, val, mask, *rest, **options)

    GridExecutor._init_args_hst = init_args
    builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw = load, store, add
    try:
        yield
    finally:
        GridExecutor._init_args_hst = made
        del builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw


def _extents(argument: Any) -> Iterator[tuple[int, int]]:
    """First byte of a tensor's elements and the one after its last."""
    if isinstance(argument, TensorDescriptor):
        argument = argument.base
    if isinstance(argument, torch.Tensor) and argument.numel():
        last = sum((size - 1) * stride for size, stride in zip(argument.shape, argument.stride(), strict=True))
        yield argument.data_ptr(), argument.data_ptr() + (last + 1) * argument.element_size()


def _check(ranges: list[tuple[int, int]], pointers: Any, mask: Any, does: str) -> None:
    size = pointers.dtype.scalar.element_ty.primitive_bitwidth // 8
    places, wanted = np.broadcast_arrays(pointers.data, mask.data)
    places = places[wanted.astype(bool)].astype(np.int64)
    if not places.size:
        return
    starts, ends = (np.array(side, dtype=np.int64) for side in zip(*ranges, strict=True)) if ranges else ([], [])
    ends = np.maximum.accumulate(ends)  # where tensors overlap, the longest that began before counts
    holder = np.searchsorted(starts, places, side="right") - 1
    bad = (holder < 0) | (places + size > ends[holder])
    if bad.any():
        raise OutOfBounds(f"program {builder.grid_idx} {does} {int(bad.sum())} of {bad.size} elements out of bounds")

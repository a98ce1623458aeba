"""One call that the gate follows, the sizes, and the tensors that calls take.

Tensors are on the meta device: only shapes, strides, types and alignment are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
BUDGET = 256 * 2**20
CLASSES = 100
KS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


@dataclass(frozen=True)
class Size:
    """Tokens N, latents S, channels D."""

    name: str
    tokens: int
    latents: int
    width: int


PAPER = Size("paper", 25_216, 49_152, 768)
LARGE = Size("large", 8_224, 131_072, 1_024)
TAILS = Size("tails", 37, 1_001, 99)
ONE = Size("one token", 1, 49_152, 768)
WIDE = Size("wide", 8_224, 32_768, 4_096)


@dataclass(frozen=True)
class Call:
    """One call of a host function.

    Attributes:
        name: what is called and what is special about it; picks calls in ``python -m tests.gate NAME``.
        slow: not the paper's shape, whose figures alone are recorded.
        part: the only one that it is compiled for; empty: all.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    slow: bool = False
    part: str = ""


def meta(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def i32(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int32)


def i64(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int64)


def misaligned(tensor: Tensor) -> Tensor:
    """The same shape and type, starting one element after a boundary of 16 bytes, as a slice of a tensor may."""
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device="meta")[1:].view(tensor.shape)


def csr(size: Size, active: int = 149, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices, pointers."""
    entries = size.tokens * active
    return meta(entries, dtype=dtype), i32(entries), i64(size.tokens + 1)


def slice_of_csr(size: Size) -> tuple[Tensor, ...]:
    return tuple(map(misaligned, csr(size)))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

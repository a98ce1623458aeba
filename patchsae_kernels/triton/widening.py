"""The library's products with float32 results of float32 or bfloat16 operands: sums are in float32 either way."""

from __future__ import annotations

import torch
from torch import Tensor

WIDENS = torch.__version__ >= "2.10" and torch.version.hip is None
"""Whether a GPU adds a bfloat16 product to a float32 matrix in place; earlier, that had to be bfloat16 as well."""


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``out = a @ b``; ``out`` float32, a and b both float32 or both bfloat16."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if _widens(a):
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total += a @ b``, of the same dtypes as `product`."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    if _widens(a):
        return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype))


def _widens(a: Tensor) -> bool:
    return WIDENS and a.is_cuda

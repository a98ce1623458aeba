"""The native CPU implementations: torch tensors in, addresses to the extension.

The extension may be absent (an unusual platform, or an import from the source tree); then `available` is False and the
reference runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_native: Any
try:
    from patchsae_kernels import _native  # type: ignore[attr-defined,no-redef]

    missing = ""
except ImportError as error:
    _native = None
    missing = str(error)

available: bool = _native is not None


def isa() -> str:
    """The instruction set the loops run on, e.g. ``x86-64-v4``; ``none`` without the extension."""
    return _native.isa() if _native is not None else "none"


def can_decode(values: Tensor, W_dec: Tensor, b_dec: Tensor) -> bool:
    """Whether `decode` takes these: float32 values and bias, float32 or bfloat16 rows."""
    return (
        values.dtype == torch.float32
        and b_dec.dtype == torch.float32
        and W_dec.dtype in (torch.float32, torch.bfloat16)
    )


def decode(values: Tensor, indices: Tensor, indptr: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """``[N, D]`` float32, see `patchsae_kernels.decode`; the arguments are valid and satisfy `can_decode`."""
    assert _native is not None
    values, indices, indptr = values.contiguous(), indices.contiguous(), indptr.contiguous()
    W_dec, b_dec = W_dec.contiguous(), b_dec.contiguous()
    rows, width = indptr.shape[0] - 1, W_dec.shape[1]
    y = torch.empty(rows, width)
    _native.decode(
        values.data_ptr(),
        indices.data_ptr(),
        indptr.data_ptr(),
        rows,
        values.shape[0],
        W_dec.data_ptr(),
        W_dec.dtype == torch.bfloat16,
        W_dec.shape[0],
        b_dec.data_ptr(),
        y.data_ptr(),
        width,
        torch.get_num_threads(),
    )
    return y

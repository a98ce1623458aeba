"""A dense product with the same bits for any number of threads, which the vendor's library does not promise."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels.cpu.extension import native


def product(a: Tensor, b: Tensor, into: Tensor | None = None) -> Tensor:
    """``a b`` ``[M, N]``, or ``into + a b`` in place; float32. ``a`` ``[M, K]`` may be strided; ``b`` is ``[K, N]``."""
    b = b.contiguous()
    c = a.new_empty(a.shape[0], b.shape[1]) if into is None else into
    native.product(
        a.data_ptr(),
        *a.stride(),
        b.data_ptr(),
        b.shape[1],
        c.data_ptr(),
        c.shape[1],
        *a.shape,
        b.shape[1],
        into is not None,
        torch.get_num_threads(),
    )
    return c

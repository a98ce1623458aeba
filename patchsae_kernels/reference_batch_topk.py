"""BatchTopK in plain PyTorch: the definition of correct, on any device and in any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_topk(values: Tensor, indices: Tensor, indptr: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``total`` largest entries of a CSR, as a CSR with the same rows; of equal values the earlier entries stay.

    Bussmann, Leask, Nanda, "BatchTopK Sparse Autoencoders" (arXiv 2412.06410). No synchronisation. Entries at and after
    ``indptr[-1]`` are ignored; where fewer than the returned length are kept, ``indptr`` of the result tells so and
    what the arrays hold behind its end is undefined.

    Args:
        values: ``[L]``, above 0.
        indices: int32 ``[L]``, ascending in a row.
        indptr: int64 ``[N + 1]``, from 0 to the number of entries, at most L.
        total: how many to keep, >= 0.

    Returns:
        values and indices of length min(total, L), indptr int64 ``[N + 1]`` ending at min(total, ``indptr[-1]``).
    """
    stored = torch.arange(values.shape[0], device=values.device) < indptr[-1]
    order = torch.sort(torch.where(stored, values, 0), descending=True, stable=True).indices[:total]
    keep = torch.zeros_like(stored).index_fill_(0, order, True) & stored
    before = torch.zeros(values.shape[0] + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(keep, 0, out=before[1:])
    kept = order.sort().values
    return values[kept], indices[kept], before[indptr]

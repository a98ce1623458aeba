"""BatchTopK: the selection in plain PyTorch, and how an encoder that keeps the largest latents of a row gets there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CSR = tuple[Tensor, Tensor, Tensor]

CANDIDATES = 4
"""The first try keeps this many times k latents of every row."""


def batch_topk(values: Tensor, indices: Tensor, indptr: Tensor, total: int) -> CSR:
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


def select_over_batch(
    encode_rows: Callable[[int], CSR],
    rows: int,
    k: int,
    latents: int,
    select: Callable[[Tensor, Tensor, Tensor, int], CSR] = batch_topk,
) -> CSR:
    """The ``rows * k`` largest positive latents of a batch; ties go to the earlier row, then to the lower latent.

    Starts from the m = 4k largest of every row. What a row did not return is smaller than all it returned (or equal,
    and later), so as long as one returned entry of the row is not selected, none of the missing ones would be. Where a
    row has all of its m entries selected, this says nothing: m doubles, for the whole batch, until no row is like that.
    The result is therefore exact, ties included.

    One host read a round (the most entries that a row has kept); one round is the rule, log2(rows / 4) + 1 the worst.

    Args:
        encode_rows: ``encode_rows(m) -> (values, indices, indptr)``: the m largest positive latents of every row, ties
            towards the lower latent, in CSR order, without padding.
        rows: N.
        k: latents to keep per row on average, 1..S.
        latents: S.
        select: `batch_topk` or one that agrees with it.

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= latents:
        raise ValueError(f"k is {k}; expected 1 <= k <= S = {latents}")
    total = rows * k
    most = min(latents, max(total, 1))
    m = min(CANDIDATES * k, most)
    while True:
        values, indices, indptr = encode_rows(m)
        kept = select(values, indices, indptr, total)
        if m == most or int(kept[2].diff().max()) < m:
            return kept
        m = min(2 * m, most)

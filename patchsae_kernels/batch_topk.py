"""BatchTopK over a batch, from an encoder that keeps the largest latents of each row."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from patchsae_kernels import reference_batch_topk

CSR = tuple[Tensor, Tensor, Tensor]

CANDIDATES = 4
"""The first try keeps this many times k latents of every row."""


def select_over_batch(
    encode_rows: Callable[[int], CSR],
    rows: int,
    k: int,
    latents: int,
    select: Callable[[Tensor, Tensor, Tensor, int], CSR] | None = None,
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
        select: `reference_batch_topk.batch_topk` or one that agrees with it; None: by device and dtype.

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
        kept = (select or select_for(values))(values, indices, indptr, total)
        if m == most or int(kept[2].diff().max()) < m:
            return kept
        m = min(2 * m, most)


def select_for(values: Tensor) -> Callable[[Tensor, Tensor, Tensor, int], CSR]:
    """The selection that serves these values: Triton on a GPU, the reference elsewhere and for float64."""
    if values.device.type == "cuda":
        from patchsae_kernels.triton import batch_topk

        if batch_topk.can_batch_topk(values):
            return batch_topk.batch_topk
    return reference_batch_topk.batch_topk

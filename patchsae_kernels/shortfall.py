"""Top-k without ReLU: where a token has fewer than k positive pre-activations, its largest negative ones as well."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels.latents import SparseLatents
from patchsae_kernels.prepare import PreparedWeights

HELD = 6  # float32 [rows, S] at a time: pre-activations, sorted ones, their int64 places, a mask


def complete(z: SparseLatents, x: Tensor, w: PreparedWeights, k: int, budget: int) -> SparseLatents:
    """The k largest pre-activations of every token, of whichever sign, ties towards the lower latent, but for zeros.

    Few tokens of a trained autoencoder are short of k positive ones: only for these all S are computed, in plain
    float32. Differentiable as `encode` is.

    Args:
        z: the k largest positive ones ``(N, S)``.
        x: ``[N, D]``, the tokens.
        budget: bytes for dense pre-activations and what is made of them.
    """
    missing = k - z.counts()
    short = missing.nonzero().squeeze(1)
    if not len(short):
        return z
    chunks = short.split(max(1, budget // (4 * HELD * z.shape[1])))
    found = [_largest_left(z, x, w, rows, missing[rows]) for rows in chunks]
    rows, columns, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = values != 0
    return z.merged(rows[kept], columns[kept], values[kept])


def _largest_left(
    z: SparseLatents, x: Tensor, w: PreparedWeights, rows: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, latents and values of the ``missing [M]`` largest pre-activations of ``rows [M]`` that z does not hold."""
    centred = x[rows].to(w.W_enc.dtype) - w.b_dec
    with torch.no_grad():
        pre = torch.addmm(w.b_enc, centred, w.W_enc)
        held = z.select_rows(rows)
        pre[held.rows(), held.indices.long()] = -torch.inf
        order = pre.sort(dim=1, descending=True, stable=True).indices[:, : int(missing.max())]
    wanted = torch.arange(order.shape[1], device=order.device) < missing[:, None]
    place, columns = wanted.nonzero()[:, 0], order[wanted]
    values = torch.einsum("nd,nd->n", centred[place], w.W_enc.t()[columns]) + w.b_enc[columns]
    return rows[place], columns, values

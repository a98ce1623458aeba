"""The largest latents of a token or of a batch, when processes hold some of the latents or of the tokens each."""

from __future__ import annotations

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Parallel

CANDIDATES = 4
"""The first try of `batchtopk` keeps this many times k latents of every row."""


def topk(x: Tensor, weights: pk.PreparedWeights, k: int, parallel: Parallel) -> pk.SparseLatents:
    """This process's share of the k largest positive latents of every token; ties go to the lower latent.

    Differentiable as `pk.encode` is.

    Args:
        x: ``[N, D]``, the same on all processes that share the latents.
        weights: of this process's latents, of which there may be none.
    """
    latents = weights.shape[1]
    found = pk.encode(x, weights, activation="topk", k=min(k, latents)) if latents else _empty(x)
    return found if parallel.latent_size == 1 else keep_largest(found, k, parallel)


def keep_largest(z: pk.SparseLatents, k: int, parallel: Parallel) -> pk.SparseLatents:
    """What belongs to the k largest of every row over all shards; no row of ``z`` has more than k entries."""
    place = torch.arange(z.nnz, device=z.device) - z.indptr[:-1].repeat_interleave(z.counts(), output_size=z.nnz)
    rows = z.rows()
    padded = z.values.new_zeros(z.shape[0], k)
    padded[rows, place] = z.values.detach()
    everybody = parallel.gather_latents(padded).transpose(0, 1)  # [N, shards, k]: in a row the latents ascend
    order = everybody.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :k]
    keep = torch.zeros_like(everybody.flatten(1), dtype=torch.bool).scatter_(1, order, True).view(everybody.shape)
    return z.where(keep[rows, parallel.latent_rank, place])


@torch.no_grad()
def batchtopk(x: Tensor, weights: pk.PreparedWeights, k: int, parallel: Parallel) -> pk.SparseLatents:
    """This process's share of the k * N largest positive latents of all N tokens of all processes.

    Ties go to the earlier token, then to the lower latent. From the m largest of every row on: what a row did not
    return is no larger than what it returned, so the selection is exact unless a row has all its m entries selected;
    then m doubles, everywhere.

    Args:
        x: ``[n, D]``, this process's tokens.
    """
    if parallel.data_size == 1 and parallel.latent_size == 1:
        return pk.encode(x, weights, activation="batchtopk", k=min(k, weights.shape[1]))
    tokens = parallel.gather_data(torch.tensor([x.shape[0]], device=x.device))
    total, first_row = k * int(tokens.sum()), int(tokens[: parallel.data_rank].sum())
    latents = weights.shape[1]
    m = min(CANDIDATES * k, latents)
    while True:
        found = pk.encode(x, weights, activation="topk", k=m)
        keys = (found.rows() + first_row) * (latents * parallel.latent_size)
        keys += found.indices + latents * parallel.latent_rank
        kept = found.where(_among_largest(found.values, keys, total, parallel))
        saturated = (kept.counts() == m).any().long() if m < latents else tokens.new_zeros(())
        _sum_everywhere(saturated, parallel)
        if not saturated:
            return kept
        m = min(2 * m, latents)


def _empty(x: Tensor) -> pk.SparseLatents:
    indptr = torch.zeros(x.shape[0] + 1, dtype=torch.int64, device=x.device)
    return pk.SparseLatents(x.new_zeros(0), indptr.new_zeros(0, dtype=torch.int32), indptr, (x.shape[0], 0))


def _among_largest(values: Tensor, keys: Tensor, total: int, parallel: Parallel) -> Tensor:
    """bool ``[nnz]``: the entries among the ``total`` largest of all processes; of equal ones those with low keys."""
    cut = _nth_largest(values, total, parallel)
    above, tied = values > cut, values == cut
    certain = above.sum()
    _sum_everywhere(certain, parallel)
    room = total - int(certain)
    everybody = parallel.gather_data(_gather_shards(keys[tied], parallel)).sort().values
    if len(everybody) <= room:
        return above | tied
    return above | (tied & (keys < everybody[room]))


def _nth_largest(values: Tensor, n: int, parallel: Parallel) -> Tensor:
    """The n-th largest of the positive float values of all processes, 0-d; 0 where they are fewer.

    By bisection over the bits: positive floats are ordered as the integers with the same bits are. Each round adds up
    one count.
    """
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = values.contiguous().view(integer)
    low = torch.zeros((), dtype=integer, device=values.device)  # at least n values are >= low, or low is 0
    for bit in range(30 if integer == torch.int32 else 62, -1, -1):
        candidate = low + (1 << bit)
        count = (bits >= candidate).sum()
        _sum_everywhere(count, parallel)
        low = torch.where(count >= n, candidate, low)
    return low.view(values.dtype)


def _gather_shards(keys: Tensor, parallel: Parallel) -> Tensor:
    """The keys of all processes that share the latents, which may have unequally many."""
    longest = int(parallel.gather_latents(torch.tensor([len(keys)], device=keys.device)).max())
    padded = torch.nn.functional.pad(keys, (0, longest - len(keys)), value=-1)
    everybody = parallel.gather_latents(padded).flatten()
    return everybody[everybody >= 0]


def _sum_everywhere(count: Tensor, parallel: Parallel) -> None:
    parallel.sum_latents_([count])
    parallel.sum_data_([count])

"""Average precision of every latent for every concept, exact, on sparse scores."""

from __future__ import annotations

import torch
from torch import Tensor

import patchsae_kernels as pk

BUDGET_MB = 64


def average_precision(scores: pk.SparseLatents, positives: Tensor, budget_mb: float = BUDGET_MB) -> Tensor:
    """Area under the precision-recall steps of each latent as a ranking of images: AP = sum_k (R_k - R_{k-1}) P_k.

    One step k for every *distinct* score, in descending order: images with the same score enter together, so the order
    of the images does not matter (the definition of scikit-learn's `average_precision_score`; no interpolation). Images
    that a column does not hold score 0 and are its last step; a latent that never fired has the share of positives.

    Args:
        scores: [n, S] on the CPU, stored values > 0.
        positives: bool [n, V], the images that show each concept.
        budget_mb: bound on the temporaries, which grow with stored values x V; one column is always taken whole.

    Returns:
        float64 [S, V]; NaN for a concept without positives.
    """
    images, latents = scores.shape
    if positives.shape[0] != images:
        raise ValueError(f"positives has shape {tuple(positives.shape)}; expected [n, V] with n = {images}")
    order = torch.argsort(scores.values, descending=True, stable=True)
    order = order[torch.argsort(scores.indices[order], stable=True)]  # by latent, then by falling score
    rows, values = scores.rows()[order], scores.values[order]
    starts = torch.zeros(latents + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(scores.indices, minlength=latents), 0, out=starts[1:])
    total = positives.sum(0)
    result = (total.double() ** 2 / images).expand(latents, -1).clone()  # of latents without any entry
    most = max(1, int(budget_mb * 2**20) // (24 * max(1, positives.shape[1])))
    for first, last in _column_chunks(starts, most):
        cut = slice(int(starts[first]), int(starts[last]))
        bounds = starts[first : last + 1] - starts[first]
        result[first:last] = _precision_sums(positives[rows[cut]], values[cut], bounds, total, images)
    return result / total


def _precision_sums(hits: Tensor, values: Tensor, starts: Tensor, total: Tensor, images: int) -> Tensor:
    """AP times the number of positives for some columns, float64 [columns, V]; column c is starts[c]:starts[c + 1]."""
    column = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    found = torch.zeros(len(values) + 1, hits.shape[1], dtype=torch.int32)
    torch.cumsum(hits, 0, out=found[1:])
    last_of_step = torch.ones(len(values), dtype=torch.bool)
    last_of_step[:-1] = (values[1:] != values[:-1]) | (column[1:] != column[:-1])
    step = last_of_step.nonzero().squeeze(1)
    column = column[step]
    at_start = starts[column]
    found_here = found[step + 1] - found[at_start]
    before = torch.cat([torch.zeros(1, dtype=torch.int64), step[:-1] + 1])  # a column ends with a step
    gain = found[step + 1] - found[before]
    sums = torch.zeros(len(starts) - 1, hits.shape[1], dtype=torch.float64)
    sums.index_add_(0, column, gain * (found_here.double() / (step + 1 - at_start)[:, None]))
    missed = total - (found[starts[1:]] - found[starts[:-1]])
    return sums + missed * (total.double() / images)


def _column_chunks(starts: Tensor, most: int) -> list[tuple[int, int]]:
    """Ranges of columns with at most so many entries each, or of a single column."""
    chunks, first = [], 0
    latents = len(starts) - 1
    while first < latents:
        reach = int(torch.searchsorted(starts, starts[first] + most, right=True)) - 1
        last = min(latents, max(first + 1, reach))
        chunks.append((first, last))
        first = last
    return chunks

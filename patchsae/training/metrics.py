"""One line of metrics.jsonl from one training step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Parallel


def total_variance(residual: Tensor, parallel: Parallel) -> float:
    """Sum over tokens and dimensions of the squared distance of `residual` [.., D] from its mean, over all processes.

    The mean is that of the batch in every dimension, not zero, which would credit a reconstruction with the mean.
    """
    tokens = residual.reshape(-1, residual.shape[-1])
    count = tokens.new_tensor(len(tokens), dtype=torch.float64)
    if len(tokens):
        mean = tokens.mean(dim=0, dtype=torch.float64)
        within = tokens.var(dim=0, correction=0).double().sum() * count
    else:
        mean = tokens.new_zeros(tokens.shape[1], dtype=torch.float64)
        within = torch.zeros_like(count)
    sums = [count.clone(), mean * count]
    parallel.sum_data_(sums)
    total = within + (mean - sums[1] / sums[0]).square().sum() * count
    parallel.sum_data_([total])
    return total.item()


def total_norm(residual: Tensor, parallel: Parallel) -> float:
    """Sum over tokens and dimensions of the squares of `residual` [.., D], over all processes."""
    total = residual.square().sum(dtype=torch.float64)
    parallel.sum_data_([total])
    return total.item()


def explained_variance(squared_error: float, variance: float) -> float:
    """Share of the batch's variance that the reconstruction explains: 1 - squared error / variance.

    Both are sums over tokens and dimensions, see `total_variance`. NaN where there is no variance.
    """
    return 1.0 - squared_error / variance if variance > 0 else math.nan


def normalised_squared_error(squared_error: float, norm: float) -> float:
    """sum |y - x|^2 / sum |x|^2, see `total_norm`: 1 for a reconstruction that is 0. NaN where all tokens are 0."""
    return squared_error / norm if norm > 0 else math.nan


def record(
    terms: pk.StepTerms, variance: float, norm: float, *, dead: float, step: int, images: int, l1: float, lr: float
) -> dict[str, float]:
    """The line of the `step`-th step (from 1), all of it about this one batch, as plain numbers.

    `l1` includes the coefficient and `l1_norm` does not (NaN for a coefficient of 0, which hides it); `dead` is the
    share of latents that counted as dead in the step; `images` are those trained on so far; `variance` and `norm`
    are those of the batch, see `total_variance` and `total_norm`.
    """
    return {
        "step": step,
        "images": images,
        "total": terms.total.item(),
        "mse": terms.mse.item(),
        "l1": terms.l1.item(),
        "l1_norm": terms.l1.item() / l1 if l1 else math.nan,
        "ghost": terms.ghost.item(),
        "l0": terms.l0.item(),
        "explained_variance": explained_variance(terms.squared_error.item(), variance),
        "nmse": normalised_squared_error(terms.squared_error.item(), norm),
        "dead": dead,
        "lr": lr,
    }

"""One line of metrics.jsonl from one training step."""

from __future__ import annotations

import math

from torch import Tensor

import patchsae_kernels as pk


def explained_variance(residual: Tensor, squared_error: float) -> float:
    """Share of the batch's variance that the reconstruction explains: 1 - squared error / variance.

    Both are sums over tokens and dimensions; the variance is about the mean of the batch in every dimension (not about
    zero, which would credit the reconstruction with the mean). `residual` [.., D]; NaN where it has no variance.
    """
    tokens = residual.flatten(0, -2)
    variance = tokens.var(dim=0, correction=0).double().sum().item() * len(tokens)
    return 1.0 - squared_error / variance if variance > 0 else math.nan


def record(
    terms: pk.StepTerms,
    residual: Tensor,
    dead: Tensor,
    *,
    step: int,
    images: int,
    l1: float,
    lr: float,
    images_per_s: float,
) -> dict[str, float]:
    """The line of the `step`-th step (from 1), all of it about this one batch, as plain numbers.

    `l1` includes the coefficient and `l1_norm` does not (NaN for a coefficient of 0, which hides it); `dead` is the
    share of latents that counted as dead in the step; `images` are those trained on so far.
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
        "explained_variance": explained_variance(residual, terms.squared_error.item()),
        "dead": dead.double().mean().item(),
        "lr": lr,
        "images_per_s": images_per_s,
    }

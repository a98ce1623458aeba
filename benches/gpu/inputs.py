"""Residual-like inputs: tokens with a decaying spectrum, and an encoder bias calibrated to the wanted L0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench.inputs import Problem
from patchsae.bench.sizes import Size

CALIBRATION_TOKENS = 1024


def residual_problem(size: Size, device: torch.device, seed: int = 0, outliers: bool = False) -> Problem:
    """Inputs of a size.

    Tokens have a decaying spectrum and lengths that vary; encoder biases vary between latents, so that activity is
    skewed over tokens and latents. ``outliers`` adds four channels and one token in a hundred that are far larger.
    """
    g = torch.Generator(device).manual_seed(seed)
    n, d, s = size.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    spectrum = (1 + torch.arange(d, device=device)).float() ** -0.25
    spectrum /= spectrum.square().mean().sqrt()
    b_dec = 0.5 * normal(d)

    def tokens() -> Tensor:
        x = normal(n, d) * spectrum * (0.15 * normal(n, 1)).exp()
        if outliers:
            x[:, :: max(1, d // 4)] *= 20
            x[:: min(100, n)] *= 10
        return x + b_dec

    xs = tuple(tokens() for _ in range(size.sets))
    W_enc = F.normalize(normal(s, d), dim=1).t()
    b_enc = calibrated_bias(xs[0], W_enc, 0.3 * normal(s), b_dec, size.l0)
    return Problem(
        size=size,
        xs=xs,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=F.normalize(normal(s, d), dim=1),
        b_dec=b_dec,
        threshold=torch.rand(s, generator=g, device=device),
        rank=torch.stack([torch.randperm(s, generator=g, device=device) for _ in range(size.classes)]).int(),
    )


def calibrated_bias(x: Tensor, W_enc: Tensor, spread: Tensor, b_dec: Tensor, l0: float) -> Tensor:
    """``spread - level`` [S]; the level is found by bisection: a sample of tokens has ``l0`` active latents."""
    sample = x[:: max(1, x.shape[0] // CALIBRATION_TOKENS)]
    pre = torch.addmm(spread, sample - b_dec, W_enc)
    low, high = float(pre.min()), float(pre.max())
    for _ in range(40):
        middle = (low + high) / 2
        if float((pre > middle).sum()) / len(sample) > l0:
            low = middle
        else:
            high = middle
    return spread - (low + high) / 2


def describe(z: pk.SparseLatents) -> dict[str, float]:
    """How the activity of latents is distributed: mean, 10th and 90th percentile and largest L0, share ever active."""
    counts = z.counts().float()
    p10, p90 = torch.quantile(counts, counts.new_tensor([0.1, 0.9])).tolist()
    used = torch.unique(z.indices).numel() / z.shape[1]
    return {"l0": z.l0, "l0_p10": p10, "l0_p90": p90, "l0_max": float(counts.max()), "latents_used": used}

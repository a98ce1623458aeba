"""Norms between a linear encoder and its activation, made a part of the encoder; in float64, stored in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchsae.disk.claims import require_memory
from patchsae.models.checkpoints.fold import ROWS, scaled_latents

EPSILON = 1e-5  # PyTorch's default of both


def batch_norm(
    W_enc: Tensor, b_enc: Tensor, norm: Mapping[str, Tensor], epsilon: float = EPSILON
) -> tuple[Tensor, Tensor]:
    """W_enc ``[D, S]`` and b_enc ``[S]`` that do the same as these with a batch norm after them, when it is evaluated.

    ``g (x W + b - running_mean) / sqrt(running_var + epsilon) + beta``.

    Args:
        norm: ``[S]`` each: "weight" (g), "bias" (beta), "running_mean", "running_var".

    Raises:
        ValueError: a variance is negative.
    """
    variance = norm["running_var"].double()
    if bool((variance < 0).any()):
        raise ValueError(f"running_var has {int((variance < 0).sum()):,} negative entries; expected variances")
    factor = norm["weight"].double() / (variance + epsilon).sqrt()
    bias = (b_enc.double() - norm["running_mean"].double()) * factor + norm["bias"].double()
    return scaled_latents(W_enc.T, factor).T, bias.float()


def layer_norm(W_enc: Tensor, b_enc: Tensor, norm: Mapping[str, Tensor], epsilon: float = EPSILON) -> dict[str, Tensor]:
    """W_enc, b_enc, scaled_bias and spread of an encoder with a layer norm over its latents (`normalise.over_latents`).

    The variance of the pre-activations ``x W + b`` over the latents is a quadratic form of ``[x, 1]``, with the
    covariance C of W and b over the latents: ``sigma^2 = [x, 1] C [x, 1]^T + epsilon``, and ``R^T R = C`` with the
    epsilon in its last entry.

    Args:
        norm: ``[S]`` each: "weight" (g), "bias" (beta).

    Raises:
        ValueError: there are fewer latents than dimensions.
    """
    d_sae, size = len(b_enc), len(W_enc) + 1
    if d_sae < size - 1:  # else the covariance would be larger than the file
        raise ValueError(f"a layer norm over S = {d_sae:,} latents of D = {size - 1:,} dimensions; expected S >= D")
    require_memory(f"the covariance [D + 1, D + 1] of weights with D = {size - 1:,}", 3 * 8 * size**2)
    gain, bias = norm["weight"].double(), b_enc.double()
    bias = bias - bias.mean()
    parts = W_enc.T.split(ROWS)
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / d_sae
    covariance = torch.zeros(size, size, dtype=torch.float64)
    for part, of in zip(parts, bias.split(ROWS), strict=True):
        apart = torch.cat([part.double() - mean, of[:, None]], dim=1)
        covariance += apart.T @ apart / d_sae
    covariance[-1, -1] += epsilon
    values, vectors = torch.linalg.eigh(covariance)  # fewer latents than dimensions: no Cholesky factor
    scaled = zip(parts, gain.split(ROWS), strict=True)
    return {
        "W_enc": torch.cat([((part.double() - mean) * by[:, None]).float() for part, by in scaled]).T,
        "b_enc": norm["bias"].float(),
        "scaled_bias": (gain * bias).float(),
        "spread": (values.clamp(min=0).sqrt()[:, None] * vectors.T).float(),
    }

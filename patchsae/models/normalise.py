"""What an autoencoder may do to each token before it encodes it, which no weights can say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LAYER_NORM_EPSILON = 1e-5  # of SAELens, ViT-Prisma, MSAE and OpenAI's code, added to the deviation and not undone
UNIT_NORM_EPSILON = 1e-8
ALIGNED = 8  # float32 numbers that kernels load at once, or more


class Normalised(NamedTuple):
    """Attributes:

    tokens: float32 ``[N, D]``, what the encoder sees.
    mean, scale: float32 ``[N]``; a reconstruction y of `tokens` is ``y * scale + mean`` of the token. None: 0 and 1.
    """

    tokens: Tensor
    mean: Tensor | None = None
    scale: Tensor | None = None


def layer_norm(x: Tensor) -> Normalised:
    """``(x - mean) / (deviation + 1e-5)`` over the D dimensions of each token; the deviation is the unbiased one."""
    mean = x.mean(1)
    apart = x - mean[:, None]
    deviation = (apart.square().sum(1) / max(1, x.shape[1] - 1)).sqrt()
    return Normalised(apart / (deviation + LAYER_NORM_EPSILON)[:, None], mean, deviation)


def norm_rescale(x: Tensor) -> Normalised:
    """``x sqrt(D) / |x|``: every token gets the length sqrt(D); a token of zeros stays as it is."""
    scale = x.norm(dim=1) / math.sqrt(x.shape[1])
    return Normalised(x / torch.where(scale > 0, scale, 1)[:, None], None, scale)


def unit_norm(x: Tensor) -> Normalised:
    """``x / (|x| + 1e-8)``: every token gets the length 1."""
    scale = x.norm(dim=1) + UNIT_NORM_EPSILON
    return Normalised(x / scale[:, None], None, scale)


PER_TOKEN: dict[str, Callable[[Tensor], Normalised]] = {
    "layer_norm": layer_norm,
    "norm_rescale": norm_rescale,
    "unit_norm": unit_norm,
}


def over_latents(centred: Tensor, spread: Tensor) -> Tensor:
    """The input of an encoder whose pre-activations are normalised over the latents, ``[N, extended_width(D)]``.

    With u = x - b_dec and pre = u W + b, a layer norm over the S latents, g (pre - mean) / sigma + beta, is the affine
    encoder ``g (W - mean(W)), g (b - mean(b))`` of ``[u, 1] / sigma``, plus beta: the mean is taken out of the weights,
    and ``sigma^2 = |R [u, 1]|^2`` with ``R^T R`` the covariance of the weights over the latents. Zeros follow the 1.

    Args:
        centred: u, float32 ``[N, D]``.
        spread: R, float32 ``[D + 1, D + 1]``, the epsilon of the norm included.
    """
    extended = torch.cat([centred, centred.new_ones(len(centred), 1)], dim=1)
    deviation: Tensor = (extended @ spread.T).norm(dim=1, keepdim=True)
    return F.pad(extended / deviation, (0, extended_width(centred.shape[1]) - extended.shape[1]))


def extended_width(d_in: int) -> int:
    """The width of `over_latents` for tokens of width D: D + 1, up to whole aligned loads of a row's numbers."""
    return -(-(d_in + 1) // ALIGNED) * ALIGNED

"""From other projects' conventions to ours, exactly: ``h = act((x - b_dec) W_enc + b_enc)``, ``x^ = h W_dec + b_dec``.

Computed in float64, stored in float32; latents keep their values, and the choice among them is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ROWS = 4096  # latents widened at a time


def fold(
    *,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    subtracts: bool,
    mean: Tensor | float = 0.0,
    std: Tensor | float = 1.0,
) -> dict[str, Tensor]:
    """Our parameters of an autoencoder that encodes u = (x - mean) / std, and whose reconstruction is undone likewise.

    With ``a = 1`` where it subtracts its decoder bias (``act((u - a b_dec) W_enc + b_enc)``) and 0 where not:
    ``b_dec' = std b_dec + mean``, ``W_dec' = std W_dec``, ``W_enc' = W_enc / std``,
    ``b_enc' = b_enc + (1 - a) b_dec W_enc``.

    Args:
        W_enc: ``[D, S]``. b_enc: ``[S]``. W_dec: ``[S, D]``. b_dec: ``[D]``; zeros for one that has none.
        subtracts: whether b_dec is taken from the input before it is encoded.
        mean, std: a number, or one for each dimension ``[D]``.
    """
    beta = b_enc.double()
    if not subtracts and bool(b_dec.any()):
        beta = beta + torch.cat([b_dec.double() @ part.double() for part in W_enc.split(ROWS, dim=1)])
    bias = torch.as_tensor(std, dtype=torch.float64) * b_dec.double() + torch.as_tensor(mean, dtype=torch.float64)
    return {
        "W_enc": _scaled(W_enc.T, 1 / torch.as_tensor(std, dtype=torch.float64)).T,
        "b_enc": beta.float(),
        "W_dec": _scaled(W_dec, torch.as_tensor(std, dtype=torch.float64)),
        "b_dec": bias.float(),
    }


def unsubtracted(state: Mapping[str, Tensor]) -> Tensor:
    """The b_enc ``[S]`` with which an encoder that sees x in place of x - b_dec does the same: b_enc - b_dec W_enc."""
    W_enc, b_dec = state["W_enc"], state["b_dec"].double()
    folded = torch.cat([b_dec @ part.double() for part in W_enc.split(ROWS, dim=1)])
    return (state["b_enc"].double() - folded).float()


def gated(*, W_enc: Tensor, r_mag: Tensor, b_mag: Tensor, b_gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W_enc, b_enc and threshold of the JumpReLU autoencoder that a gated one is.

    ``1[u W + b_gate > 0] relu(e u W + b_mag)`` with ``e = exp(r_mag)`` is ``pre = u (e W) + b_mag`` where
    ``pre > max(0, b_mag - e b_gate)`` (both inequalities are strict), and 0 elsewhere.
    """
    e = r_mag.double().exp()
    threshold = (b_mag.double() - e * b_gate.double()).clamp(min=0)
    return scaled_latents(W_enc.T, e).T, b_mag.float(), threshold.float()


def scaled_latents(rows: Tensor, factor: Tensor) -> Tensor:
    """Rows ``[S, D]`` times a factor for each latent ``[S]`` (float64), float32."""
    parts = zip(rows.split(ROWS), factor.double().split(ROWS), strict=True)
    return torch.cat([(part.double() * by[:, None]).float() for part, by in parts])


def row_norms(rows: Tensor) -> Tensor:
    """The length of each row of ``[S, D]``, float64 ``[S]``."""
    return torch.cat([part.double().norm(dim=1) for part in rows.split(ROWS)])


def at_least(threshold: Tensor) -> Tensor:
    """The threshold t' for which ``pre > t'`` is ``pre >= threshold`` of float32 numbers: the one below it, or 0."""
    return torch.nextafter(threshold.float(), torch.tensor(-torch.inf)).clamp(min=0)


def _scaled(rows: Tensor, factor: Tensor) -> Tensor:
    """Rows ``[S, D]`` times a number or one for each dimension, float32; as they are where that is 1."""
    if bool((factor == 1).all()):
        return rows.float()
    return torch.cat([(part.double() * factor).float() for part in rows.split(ROWS)])

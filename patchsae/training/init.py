"""Where training starts: random weights, and b_dec at the centre of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchsae.sae import SAEConfig, SparseAutoencoder


def start_sae(
    residual: Tensor,
    *,
    expansion: int,
    seed: int,
    start: str = "geometric-median",
    metadata: Mapping[str, str | int | float] | None = None,
) -> SparseAutoencoder:
    """The released start on the device of `residual` [B, T, D]: seeded weights, b_dec at the centre of this batch.

    W_enc and W_dec are independent Kaiming-uniform draws (`SparseAutoencoder.reset_parameters`), made on the CPU so
    that a seed means the same weights on every device. S = expansion * D. For `start` see `start_centre`.
    """
    centre = start_centre(residual, start)
    width = residual.shape[-1]
    config = SAEConfig(d_in=width, d_sae=expansion * width, metadata=dict(metadata or {}))
    sae = SparseAutoencoder(config, torch.Generator().manual_seed(seed)).to(residual.device)
    with torch.no_grad():
        sae.b_dec.copy_(centre)
    return sae


def start_centre(residual: Tensor, start: str = "geometric-median") -> Tensor:
    """b_dec at the start, float32 [D], from one batch of the residual stream [B, T, D].

    `geometric-median`: the geometric median over the B images of their flattened [T*D] grids, then the mean over
    tokens, as the released code computes it. `token-median`: the geometric median over all B*T tokens. `mean`: their
    mean. `zeros`: zero.
    """
    if residual.dim() != 3:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; expected [B, T, D]")
    residual = residual.float()
    width = residual.shape[-1]
    if start == "geometric-median":
        return geometric_median(residual.flatten(1)).view(-1, width).mean(dim=0)
    if start == "token-median":
        return geometric_median(residual.flatten(0, 1))
    if start == "mean":
        return residual.flatten(0, 1).mean(dim=0)
    if start == "zeros":
        return residual.new_zeros(width)
    raise ValueError(f"start is {start!r}; expected geometric-median, token-median, mean or zeros")


@torch.no_grad()
def geometric_median(points: Tensor, *, max_iterations: int = 100, ftol: float = 1e-20, eps: float = 1e-6) -> Tensor:
    """The point with the smallest sum of distances to `points` [n, d], by Weiszfeld's iteration from their mean.

    Stops after `max_iterations`, or when the sum changes by no more than `ftol` of itself (the released limits). `eps`
    is the smallest distance divided by, so that an iterate may lie on a point. Returns [d] in the dtype of `points`;
    distances are summed in float64.
    """
    if points.dim() != 2 or points.shape[0] == 0:
        raise ValueError(f"points has shape {tuple(points.shape)}; expected [n, d] with n >= 1")
    median = points.mean(dim=0)
    distances = _distances(points, median)
    objective = distances.sum().item()
    for _ in range(max_iterations):
        weights = distances.clamp(min=eps).reciprocal()
        median = (weights / weights.sum()).to(points.dtype) @ points
        distances = _distances(points, median)
        previous, objective = objective, distances.sum().item()
        if abs(previous - objective) <= ftol * objective:
            break
    return median


def _distances(points: Tensor, centre: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points - centre, dim=1).double()

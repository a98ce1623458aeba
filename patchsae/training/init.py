"""Where training starts: weights that are random or made of tokens, and b_dec at the centre of some batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

TOKEN_SHARE = 0.8
"""Of a dictionary row of the `data` start; the rest is random, so that rows of the same or of similar tokens differ."""


def start_sae(
    batches: Tensor | Sequence[Tensor],
    *,
    expansion: int,
    seed: int,
    start: str = "geometric-median",
    init: str = "independent",
    metadata: Mapping[str, str | int | float] | None = None,
) -> SparseAutoencoder:
    """A SAE of S = expansion * D latents to begin with, on the device of `batches`.

    Random numbers are drawn on the CPU, so that a seed means the same weights on every device.

    Args:
        batches: one batch of the residual stream [B, T, D], or several; [N, D] where `start` needs no images.
        start: b_dec, see `start_centre`.
        init: `independent`: W_enc and W_dec are independent Kaiming-uniform draws
            (`SparseAutoencoder.reset_parameters`, the released start). `tied`: W_enc is W_dec transposed (Gao et al.
            2024, 2.1). `data`: tied, and each row of W_dec has the direction of a token from b_dec, mixed with that of
            its random draw; tokens come in random order, anew when all have been used.
    """
    parts = _batches(batches)
    centre = start_centre(parts, start)
    width = centre.shape[0]
    config = SAEConfig(d_in=width, d_sae=expansion * width, metadata=dict(metadata or {}))
    generator = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(config, generator).to(centre.device)
    with torch.no_grad():
        sae.b_dec.copy_(centre)
        if init == "data":
            directions = _unit(_drawn_tokens(parts, config.d_sae, generator) - centre)
            sae.W_dec.copy_(_unit(TOKEN_SHARE * directions + (1 - TOKEN_SHARE) * sae.W_dec))
        if init in ("tied", "data"):
            sae.W_enc.copy_(sae.W_dec.T)
        elif init != "independent":
            raise ValueError(f"init is {init!r}; expected independent, tied or data")
    return sae


def start_centre(batches: Tensor | Sequence[Tensor], start: str = "geometric-median") -> Tensor:
    """b_dec at the start, float32 [D], from one batch of the residual stream [B, T, D] or from several.

    `geometric-median`: the geometric median over all images of their flattened [T*D] grids, then the mean over
    tokens, as the released code computes it. `token-median`: the geometric median over all tokens. `mean`: their mean.
    `zeros`: zero. All but the first take [N, D] too. One batch is worked on at a time.
    """
    parts = _batches(batches)
    width = parts[0].shape[-1]
    if start == "geometric-median":
        for part in parts:
            if part.dim() != 3:
                raise ValueError(
                    f"residual has shape {tuple(part.shape)}; expected [B, T, D] for the geometric median over images "
                    "(token-median needs no images)"
                )
        return geometric_median([part.flatten(1) for part in parts]).view(-1, width).mean(dim=0)
    tokens = [part.reshape(-1, width) for part in parts]
    if start == "token-median":
        return geometric_median(tokens)
    if start == "mean":
        return _mean(tokens)
    if start == "zeros":
        return torch.zeros(width, device=parts[0].device)
    raise ValueError(f"start is {start!r}; expected geometric-median, token-median, mean or zeros")


@torch.no_grad()
def geometric_median(
    points: Tensor | Sequence[Tensor], *, max_iterations: int = 100, ftol: float = 1e-20, eps: float = 1e-6
) -> Tensor:
    """The point with the smallest sum of distances to `points` [n, d], by Weiszfeld's iteration from their mean.

    Points may come in several parts [n_i, d]: every iteration goes through them one after the other.

    Stops after `max_iterations`, or when the sum changes by no more than `ftol` of itself (the released limits). `eps`
    is the smallest distance divided by, so that an iterate may lie on a point. Returns [d] in the dtype of `points`,
    at least float32; distances are summed in float64.
    """
    parts = [points] if isinstance(points, Tensor) else list(points)
    for part in parts or [torch.empty(0)]:
        if part.dim() != 2 or part.shape[0] == 0:
            raise ValueError(f"points has shape {tuple(part.shape)}; expected [n, d] with n >= 1")
    median = _mean(parts)
    distances = [_distances(part, median) for part in parts]
    objective = _total(distances)
    for _ in range(max_iterations):
        weights = [d.clamp(min=eps).reciprocal() for d in distances]
        total = _total(weights)
        pulls = [(w / total).to(median.dtype) @ p.to(median.dtype) for w, p in zip(weights, parts, strict=True)]
        median = torch.stack(pulls).sum(dim=0)
        distances = [_distances(part, median) for part in parts]
        previous, objective = objective, _total(distances)
        if abs(previous - objective) <= ftol * objective:
            break
    return median


def _batches(batches: Tensor | Sequence[Tensor]) -> list[Tensor]:
    parts = [batches] if isinstance(batches, Tensor) else list(batches)
    if not parts:
        raise ValueError("batches is empty; expected at least one batch of the residual stream")
    for part in parts:
        if part.dim() not in (2, 3) or not part.numel():
            raise ValueError(f"residual has shape {tuple(part.shape)}; expected [B, T, D] or [N, D], not empty")
    return parts


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """Mean of the rows of all parts, at least float32."""
    count = sum(len(part) for part in parts)
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    return torch.stack([part.to(dtype).mean(dim=0) * (len(part) / count) for part in parts]).sum(dim=0)


def _drawn_tokens(parts: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """`count` tokens [count, D] in random order, each pass over all of them in a new one."""
    tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    passes = -(-count // len(tokens))
    order = torch.cat([torch.randperm(len(tokens), generator=generator) for _ in range(passes)])[:count]
    return tokens[order.to(tokens.device)].float()


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    return torch.nn.functional.normalize(rows, dim=1)


def _distances(points: Tensor, centre: Tensor) -> Tensor:
    """Float64 [n]."""
    distances: Tensor = torch.linalg.vector_norm(points - centre, dim=1)
    return distances.double()


def _total(parts: Sequence[Tensor]) -> float:
    return sum(part.sum().item() for part in parts)

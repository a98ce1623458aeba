"""Input normalisation: a scale and a shift of the residual stream, folded into the weights at export."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from patchsae.models.sae import SparseAutoencoder
from patchsae.training.config import Normalise

ROUNDING = 1e-6
"""A deviation below this share of the mean is rounding."""


@dataclass(frozen=True, eq=False)
class Normaliser:
    """What the autoencoder is trained on: ``(x - shift) * scale``.

    Attributes:
        kind: `none`; `norm`: shift 0 and one scale, so that the mean of |x| is sqrt(D); `standardise`: mean 0 and
            deviation 1 in every dimension.
        shift: float32 ``[D]``.
        scale: float32 ``[D]``, above 0.
    """

    kind: str
    shift: Tensor
    scale: Tensor

    @classmethod
    def identity(cls, kind: str, width: int, device: torch.device | str = "cpu") -> Normaliser:
        """One that changes nothing yet: a place to load `shift` and `scale` into."""
        if kind not in get_args(Normalise):
            raise ValueError(f"kind is {kind!r}; expected one of {', '.join(get_args(Normalise))}")
        return cls(kind, torch.zeros(width, device=device), torch.ones(width, device=device))

    @classmethod
    @torch.no_grad()
    def fit(cls, batches: Sequence[Tensor], kind: str) -> Normaliser:
        """Measured on batches ``[..., D]`` of the residual stream, one at a time, on their device.

        A dimension without variance, up to the rounding of float32, keeps its scale.
        """
        if not batches or not all(batch.numel() for batch in batches):
            raise ValueError("batches is empty or has an empty batch; expected tokens [..., D]")
        width = batches[0].shape[-1]
        fitted = cls.identity(kind, width, batches[0].device)
        if kind == "norm":
            lengths = [batch.float().norm(dim=-1).double() for batch in batches]
            mean = sum(length.sum() for length in lengths) / sum(length.numel() for length in lengths)
            fitted.scale.fill_(width**0.5 / mean if mean > 0 else 1.0)
        if kind == "standardise":
            mean, deviation = _moments([batch.reshape(-1, width) for batch in batches])
            fitted.shift.copy_(mean)
            fitted.scale.copy_(torch.where(deviation > ROUNDING * mean.abs(), 1 / deviation, 1.0))
        return fitted

    def apply(self, x: Tensor) -> Tensor:
        """Normalised ``x [..., D]``, float32; ``x`` itself where there is nothing to do."""
        return x if self.kind == "none" else (x - self.shift) * self.scale

    @torch.no_grad()
    def fold(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """The autoencoder on raw input that is ``sae`` on normalised input.

        With m the shift and s the scale: W_enc' = s W_enc and b_dec' = m + b_dec / s give the same latents of x as
        ``sae`` of (x - m) s, and W_dec' = W_dec / s with the same b_dec' decodes to the raw stream. Its dictionary rows
        have no unit norm: the latents are those that were trained.
        """
        if self.kind == "none":
            return sae
        folded = copy.deepcopy(sae)
        folded.W_enc.mul_(self.scale.unsqueeze(1))
        folded.W_dec.div_(self.scale)
        folded.b_dec.div_(self.scale).add_(self.shift)
        return folded


def _moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the rows of all parts, float64 ``[D]``: two passes, one part at a time."""
    count = sum(len(part) for part in parts)
    mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / count
    squares = torch.stack([(part.double() - mean).square().sum(dim=0) for part in parts]).sum(dim=0)
    return mean, (squares / count).sqrt()

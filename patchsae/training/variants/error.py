"""How the squared error of a token counts in the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a batch, and what their squared errors are multiplied with.

    Attributes:
        x: ``[N, D]``.
        scale: ``[N, 1]``, such that an error e counts ``scale * sum_d e_d^2`` in the mean over tokens.
        cls: ``[N, 1]``, the factor of CLS tokens; 1 for the others.
    """

    x: Tensor
    scale: Tensor
    cls: Tensor

    def __getitem__(self, rows: slice) -> Tokens:
        return Tokens(self.x[rows], self.scale[rows], self.cls[rows])


@dataclass(frozen=True)
class ErrorScale:
    """Squared error of a token x: released ``mean_d e_d^2 / |x|``, published ``sum_d e_d^2``.

    Lim et al. (arXiv 2412.05276): the published equation and the released code differ in this.

    Attributes:
        released: which of the two.
        cls_weight: factor on the squared error of token 0 of every image.
    """

    released: bool = True
    cls_weight: float = 1.0

    def of(self, x: Tensor) -> Tokens:
        """The tokens of ``x``, ``[B, T, D]`` (token 0 is CLS) or ``[N, D]`` (all tokens are alike).

        Raises:
            ValueError: x has another number of dimensions.
        """
        if x.dim() not in (2, 3):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, T, D] or [N, D]")
        flat = x.detach().reshape(-1, x.shape[-1])
        cls = torch.ones_like(x[..., :1])
        if x.dim() == 3:
            cls[:, 0] = self.cls_weight
        scale = 1 / (flat.norm(dim=1, keepdim=True) * x.shape[-1]) if self.released else torch.ones_like(flat[:, :1])
        return Tokens(flat, scale, cls.reshape(-1, 1))

"""Residual streams of several blocks from one pass of the tower, side by side in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from patchsae.models import tower
from patchsae.models.clip import SplitCLIP


class Taps:
    """A `SplitCLIP` as a source of tokens sees it, whose residual stream is those of several blocks side by side.

    Args:
        clip: its own block does not matter.
        blocks: 0-based, ascending.
    """

    def __init__(self, clip: SplitCLIP, blocks: Sequence[int]) -> None:
        self.clip, self.blocks = clip, list(blocks)
        self.width = len(self.blocks) * clip.width
        self.image_tokens, self.dtype = clip.image_tokens, clip.dtype
        self.preprocess: Callable[[Any], Tensor] = clip.preprocess

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def residual(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W]` preprocessed -> `[B, T, L * D]` in the tower's dtype; see `stream`."""
        pixels = pixels.to(self.device, self.clip.dtype)
        return torch.cat(tower.residual_streams(self.clip.model.visual, pixels, self.blocks), dim=-1)

    def stream(self, tokens: Tensor, block: int) -> Tensor:
        """The residual stream of one block, `[..., D]` contiguous, out of tokens `[..., L * D]`."""
        first = self.blocks.index(block) * self.clip.width
        return tokens[..., first : first + self.clip.width].contiguous()

"""VPT-deep: learned tokens in front of each of the first blocks of the image tower (Jia et al., ECCV 2022).

As in MaPLe they stand after the image's tokens, where the paper puts them between CLS and the patches; attention does
not see the difference. Classes are zero-shot ones, by fixed templates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.adapters.base import AdaptedCLIP, check_range
from patchsae.models import prompts
from patchsae.models.clip import SplitCLIP

SPREAD = 0.02  # standard deviation of the first values, as MaPLe's authors start theirs


@dataclass(frozen=True)
class VPTConfig:
    """The defaults are those of the vision-only baseline that MaPLe's authors publish."""

    n_ctx: int = 8
    """Prompt tokens in front of a block, P."""
    depth: int = 12
    """Blocks that get prompts of their own; 1 is VPT-shallow."""
    templates: tuple[str, ...] = (prompts.DEFAULT_TEMPLATE,)
    """Prompts of the classes, each with one ``{}``."""


class VPT(AdaptedCLIP):
    """See `AdaptedCLIP`. Learned: ``prompts.0`` to ``prompts.{depth - 1}``, ``[P, D]`` each."""

    kind = "vpt"
    config_class = VPTConfig
    config: VPTConfig

    @classmethod
    def default_config(cls, clip: SplitCLIP) -> VPTConfig:
        return VPTConfig(depth=min(VPTConfig.depth, clip.layers))

    @classmethod
    def shapes(cls, clip: SplitCLIP, config: VPTConfig, classes: int) -> dict[str, tuple[int, ...]]:
        check_range("n_ctx", config.n_ctx, 0, 1024, "prompt tokens in front of a block")
        check_range("depth", config.depth, 1, clip.layers, f"the image tower of {clip.name!r} has that many blocks")
        return {f"prompts.{i}": (config.n_ctx, clip.width) for i in range(config.depth)}

    @classmethod
    def initial(cls, clip: SplitCLIP, config: VPTConfig, classes: int, generator: torch.Generator) -> dict[str, Tensor]:
        shapes = cls.shapes(clip, config, classes)
        return {name: SPREAD * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    @property
    def templates(self) -> tuple[str, ...]:
        return self.config.templates

    @property
    def prompt_tokens(self) -> int:
        return self.config.n_ctx

    def _vision_prompts(self) -> list[Tensor]:
        if self.config.n_ctx == 0:
            return []
        return [self._learned[f"prompts.{i}"] for i in range(self.config.depth)]


ADAPTER = VPT

"""LoRA on the image tower: W + alpha / rank * B A for chosen weights of every block (Hu et al., ICLR 2022).

For CLIP: Zanella and Ben Ayed, "Low-rank few-shot adaptation of vision-language models", CVPRW 2024, whose rank, alpha
and weights are the defaults here (theirs adapts the text tower too, and drops out inputs while training).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from patchsae.adapters.base import AdaptedCLIP, check_range
from patchsae.adapters.vision import block_output, checked_residual, projected
from patchsae.models import prompts, tower
from patchsae.models.clip import SplitCLIP, checked_pixels

ATTENTION = ("q", "k", "v")
WEIGHTS = {"o": "attn.out_proj.weight", "fc": "mlp.c_fc.weight", "proj": "mlp.c_proj.weight"}
IN_PROJ = "attn.in_proj_weight"


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of LoRA."""

    rank: int = 2
    """Rank r of an update."""
    alpha: float = 1.0
    """Updates are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q", "k", "v")
    """Weights of a block: "q", "k", "v", "o" of the attention, "fc" and "proj" of the MLP."""
    templates: tuple[str, ...] = (prompts.DEFAULT_TEMPLATE,)
    """Prompts of the classes, each with one ``{}``."""


class LoRA(AdaptedCLIP):
    """See `AdaptedCLIP`. Learned: ``blocks.{i}.{target}.A`` ``[r, in]`` and ``.B`` ``[out, r]``; B starts at zero.

    The sum W + update is formed anew in every pass and handed to the block's own forward pass. In a CLIP of low
    precision it is rounded to the CLIP's dtype.
    """

    kind = "lora"
    config_class = LoRAConfig
    config: LoRAConfig

    @classmethod
    def shapes(cls, clip: SplitCLIP, config: LoRAConfig, classes: int) -> dict[str, tuple[int, ...]]:
        allowed = (*ATTENTION, *WEIGHTS)
        if not config.targets or len(set(config.targets)) < len(config.targets) or set(config.targets) - set(allowed):
            raise ValueError(f"targets={config.targets}; expected some of {', '.join(allowed)}, each once")
        if not 0 < config.alpha < math.inf:
            raise ValueError(f"alpha={config.alpha}; expected a positive number")
        check_range("rank", config.rank, 1, clip.width, "the width of the image tower")
        shapes: dict[str, tuple[int, ...]] = {}
        for i, block in enumerate(clip.model.visual.transformer.resblocks):
            for target in config.targets:
                rows, columns = _weight(block, target).shape
                shapes[f"blocks.{i}.{target}.A"] = (config.rank, columns)
                shapes[f"blocks.{i}.{target}.B"] = (rows, config.rank)
        return shapes

    @classmethod
    def initial(
        cls, clip: SplitCLIP, config: LoRAConfig, classes: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        tensors = {name: torch.zeros(shape) for name, shape in cls.shapes(clip, config, classes).items()}
        for name, tensor in tensors.items():
            if name.endswith(".A"):
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
        return tensors

    @property
    def templates(self) -> tuple[str, ...]:
        return self.config.templates

    def residual(self, pixels: Tensor) -> Tensor:
        pixels = checked_pixels(self.clip, pixels)
        if len(pixels) == 0:
            return pixels.new_empty(0, self.image_tokens, self.width)
        return self._run_blocks(self.clip.model.visual._embeds(pixels), 0, self.layer + 1)

    def embed(self, residual: Tensor) -> Tensor:
        visual = self.clip.model.visual
        tokens = checked_residual(self.clip, residual, 0)
        last = self.layers - 1
        if self.layer < last and tower.cls_leaves_alone(visual):
            tokens = self._run_blocks(tokens, self.layer + 1, last)
            tokens = self._block(last, tokens, cls_alone=True)
        else:
            tokens = self._run_blocks(tokens, self.layer + 1, last + 1)
        return projected(visual, tokens)

    def _run_blocks(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        for i in range(start, stop):
            tokens = self._block(i, tokens)
        return tokens

    def _block(self, index: int, tokens: Tensor, cls_alone: bool = False) -> Tensor:
        transformer = self.clip.model.visual.transformer
        block = transformer.resblocks[index]
        runner = _Runner(block, transformer.batch_first, cls_alone)
        weights = {f"block.{name}": weight for name, weight in self._weights(index, block).items()}
        after: Tensor = functional_call(runner, weights, (tokens,))
        return after

    def _weights(self, index: int, block: nn.Module) -> dict[str, Tensor]:
        """The block's changed weights, by their names in it."""
        weights = {
            WEIGHTS[target]: self._changed(index, block, target) for target in self.config.targets if target in WEIGHTS
        }
        if set(self.config.targets) & set(ATTENTION):
            weights[IN_PROJ] = torch.cat([self._changed(index, block, target) for target in ATTENTION])
        return weights

    def _changed(self, index: int, block: nn.Module, target: str) -> Tensor:
        weight = _weight(block, target)
        if target not in self.config.targets:
            return weight
        a, b = (self._learned[f"blocks.{index}.{target}.{half}"] for half in "AB")
        with torch.autocast(a.device.type, enabled=False):
            return weight + (self.config.alpha / self.config.rank * (b @ a)).to(weight.dtype)


class _Runner(nn.Module):
    """A block's forward pass, or that of its CLS alone, as a module whose weights `functional_call` can exchange."""

    def __init__(self, block: nn.Module, batch_first: bool, cls_alone: bool) -> None:
        super().__init__()
        self.block, self._batch_first, self._cls_alone = block, batch_first, cls_alone

    def forward(self, tokens: Tensor) -> Tensor:
        if self._cls_alone:
            return tower.cls_after_block(self.block, tokens)[:, None]
        return block_output(self.block, tokens, self._batch_first)


def _weight(block: nn.Module, target: str) -> Tensor:
    if target in ATTENTION:
        return block.get_parameter(IN_PROJ).chunk(3)[ATTENTION.index(target)]
    return block.get_parameter(WEIGHTS[target])


ADAPTER = LoRA

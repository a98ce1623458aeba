"""The image tower with prompt tokens after the image's, replaced block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from patchsae.models import tower
from patchsae.models.clip import SplitCLIP, checked_pixels
from patchsae.models.given import require_tensor


def residual_stream(clip: SplitCLIP, pixels: Tensor, layered: Sequence[Tensor]) -> Tensor:
    """Output of block ``clip.layer``: ``[B, 3, H, W]`` -> ``[B, T + P, D]``, image tokens first.

    Args:
        layered: ``layered[i]`` is ``[P, D]`` and takes the places of the prompt tokens in front of block i. The first
            ones join after the positional embedding and before ``ln_pre``.

    Raises:
        ValueError: the images are not of this model's size.
    """
    visual: Any = clip.model.visual
    pixels = checked_pixels(clip, pixels)
    if len(pixels) == 0:
        return pixels.new_empty(0, clip.image_tokens + len(layered[0]), clip.width)
    tokens = visual._embeds(pixels)
    # ln_pre looks at one token at a time: the prompts may pass through it on their own, once for all images.
    tokens = with_prompts(tokens, visual.ln_pre(layered[0].to(tokens.dtype)))
    return _run_blocks(clip, tokens, 0, clip.layer + 1, layered)


def embedding(clip: SplitCLIP, residual: Tensor, layered: Sequence[Tensor]) -> Tensor:
    """The rest of the tower: ``[B, T + P, D]`` -> unit-norm ``[B, E]``.

    Only image tokens leave the tower; where it is CLS alone, the last block computes only that.

    Raises:
        ValueError: wrong number of dimensions, tokens or channels.
    """
    visual: Any = clip.model.visual
    tokens = checked_residual(clip, residual, len(layered[0]))
    last = clip.layers - 1
    if clip.layer < last and tower.cls_leaves_alone(visual):
        tokens = _run_blocks(clip, tokens, clip.layer + 1, last, layered)
        tokens = tower.cls_after_block(visual.transformer.resblocks[last], _replaced(clip, tokens, last, layered))
        tokens = tokens[:, None]
    else:
        tokens = _run_blocks(clip, tokens, clip.layer + 1, last + 1, layered)[:, : clip.image_tokens]
    return projected(visual, tokens)


def with_prompts(tokens: Tensor, prompts: Tensor) -> Tensor:
    """``[B, T, D]`` and ``[P, D]`` -> ``[B, T + P, D]``."""
    return torch.cat([tokens, prompts.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=1)


def projected(visual: Any, tokens: Tensor) -> Tensor:
    """Image tokens after the last block -> unit-norm embedding ``[B, E]``."""
    pooled, _ = visual._pool(tokens)
    return F.normalize(pooled if visual.proj is None else pooled @ visual.proj, dim=-1)


def block_output(block: Any, tokens: Tensor, batch_first: bool, mask: Tensor | None = None) -> Tensor:
    """``block`` on ``[B, T, D]``, whichever dimension it takes for the batch."""
    after: Tensor = block(tokens if batch_first else tokens.transpose(0, 1), attn_mask=mask)
    return after if batch_first else after.transpose(0, 1)


def checked_residual(clip: SplitCLIP, residual: Tensor, prompt_tokens: int) -> Tensor:
    """``residual`` in the CLIP's dtype; TypeError if it is no tensor, ValueError if it is not ``[B, T + P, D]``."""
    expected = (clip.image_tokens + prompt_tokens, clip.width)
    require_tensor("residual", residual, f"the residual stream [B, T + P, D] = {('B', *expected)}")
    if residual.dim() != 3 or tuple(residual.shape[1:]) != expected:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}; expected [B, T + P, D] = {('B', *expected)}: "
            f"{clip.image_tokens} image tokens and the {prompt_tokens} prompt tokens that residual() returns after them"
        )
    return residual.to(clip.dtype)


def _run_blocks(clip: SplitCLIP, tokens: Tensor, start: int, stop: int, layered: Sequence[Tensor]) -> Tensor:
    """Blocks ``start..stop-1`` on ``[B, T + P, D]``."""
    transformer: Any = clip.model.visual.transformer
    for i in range(start, stop):
        tokens = block_output(transformer.resblocks[i], _replaced(clip, tokens, i, layered), transformer.batch_first)
    return tokens


def _replaced(clip: SplitCLIP, tokens: Tensor, block: int, layered: Sequence[Tensor]) -> Tensor:
    """The tokens in front of ``block``: its own prompts in the places of those that came through the one before."""
    if not 0 < block < len(layered):
        return tokens
    return with_prompts(tokens[:, : clip.image_tokens], layered[block])

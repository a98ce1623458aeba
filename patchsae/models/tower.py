"""open_clip's VisionTransformer cut at a block: what comes before it, and what comes after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def residual_stream(visual: VisionTransformer, pixels: Tensor, layer: int) -> Tensor:
    """Output of block ``layer`` (0-based): ``[B, 3, H, W]`` -> ``[B, T, D]``, CLS first."""
    # _embeds and _pool are open_clip's own definitions of the two ends of the tower; repeating them here would
    # only let them drift apart.
    return _run_blocks(visual, visual._embeds(pixels), 0, layer + 1)


def residual_streams(visual: VisionTransformer, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Outputs of several blocks (0-based, ascending) in one pass: ``[B, 3, H, W]`` -> ``[B, T, D]`` for each."""
    tokens, start, streams = visual._embeds(pixels), 0, []
    for layer in layers:
        tokens = _run_blocks(visual, tokens, start, layer + 1)
        streams.append(tokens)
        start = layer + 1
    return streams


def pooled(visual: VisionTransformer, residual: Tensor, layer: int) -> Tensor:
    """The rest of the tower after block ``layer``: ``[B, T, D]`` -> ``[B, E]``, projected, not normalised.

    Where only CLS leaves the tower, the last block computes only CLS.
    """
    last = len(visual.transformer.resblocks) - 1
    if layer < last and cls_leaves_alone(visual):
        tokens = _run_blocks(visual, residual, layer + 1, last)
        tokens = cls_after_block(visual.transformer.resblocks[last], tokens)[:, None]
    else:
        tokens = _run_blocks(visual, residual, layer + 1, last + 1)
    embedding: Tensor = visual._pool(tokens)[0]
    projection: Tensor | None = visual.proj
    return embedding if projection is None else embedding @ projection


def cls_leaves_alone(visual: VisionTransformer) -> bool:
    """Whether nothing but CLS of the last block is used, and that block is one `cls_after_block` knows."""
    block = visual.transformer.resblocks[-1]
    return (
        visual.attn_pool is None
        and visual.pool_type == "tok"
        and type(block) is ResidualAttentionBlock
        and type(block.attn) is nn.MultiheadAttention
        and block.attn.in_proj_weight is not None
        and block.attn.bias_k is None
        and not block.attn.add_zero_attn
    )


def cls_after_block(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """CLS of ``block(tokens)``: ``[B, T, D]`` -> ``[B, D]``.

    The query, the output projection and the MLP are computed for CLS alone. Keys and values are never formed:
    q . (W_k h_t + b_k) = (W_k' q) . h_t + const, and a constant drops out of the softmax over t; the weights sum
    to 1, so sum_t a_t (W_v h_t + b_v) = W_v (sum_t a_t h_t) + b_v. That is H products of length D per token in
    place of 2 D of them (1/64 of the arithmetic for heads of 64).
    """
    attention = block.attn
    heads, width = attention.num_heads, attention.embed_dim
    normed = block.ln_1(tokens)  # [B, T, D]
    w_query, w_key, w_value = attention.in_proj_weight.chunk(3)
    b_query, _, b_value = attention.in_proj_bias.chunk(3)
    query = F.linear(normed[:, 0], w_query, b_query).unflatten(1, (heads, -1)) / math.sqrt(width // heads)  # [B, H, d]
    folded = torch.einsum("bhd,hdw->bhw", query, w_key.unflatten(0, (heads, -1)))  # [B, H, D]
    scores = folded @ normed.transpose(1, 2)  # [B, H, T]
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    mixed = weights @ normed  # [B, H, D]
    value = torch.einsum("bhw,hdw->bhd", mixed, w_value.unflatten(0, (heads, -1))).flatten(1) + b_value
    cls = tokens[:, 0] + block.ls_1(attention.out_proj(value))
    after: Tensor = cls + block.ls_2(block.mlp(block.ln_2(cls)))
    return after


def _run_blocks(visual: VisionTransformer, tokens: Tensor, start: int, stop: int) -> Tensor:
    """Blocks ``start..stop-1`` on ``[B, T, D]``."""
    transformer: Any = visual.transformer
    if not transformer.batch_first:
        tokens = tokens.transpose(0, 1)
    for block in transformer.resblocks[start:stop]:
        tokens = block(tokens)
    return tokens if transformer.batch_first else tokens.transpose(0, 1)

"""How many tokens at a time: what a chunk needs stays within a budget of memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patchsae.parallel.base import Parallel

BYTES_PER_ENTRY = 96
"""Of a latent above zero, on the way forward and back: values and indices by token and by latent, and gradients."""
VECTORS_PER_TOKEN = 10
"""Vectors ``[D]`` of a token at the same time: itself, centred, its reconstruction, errors and their gradients."""
SAMPLE_TOKENS, SAMPLE_LATENTS = 64, 4096
"""What the number of active latents is estimated from: a three-hundredth of an encode at the paper's size."""


def row_chunks(tokens: int, width: int, entries: float, budget: int, vectors: int = VECTORS_PER_TOKEN) -> list[slice]:
    """Slices of tokens, as equal as can be, each within about ``budget`` bytes; at least one token each.

    Args:
        width: D.
        entries: latents above zero per token that a chunk holds.
        vectors: vectors ``[D]`` per token that it holds.
    """
    per_token = int(4 * width * vectors + BYTES_PER_ENTRY * entries) + 1
    chunks = -(-tokens * per_token // budget) if tokens else 0
    chunks = min(chunks, tokens)
    return [slice(tokens * i // chunks, tokens * (i + 1) // chunks) for i in range(chunks)]


def estimated_share(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, lower: Tensor | None, parallel: Parallel
) -> float:
    """About which share of the pre-activations is above ``lower [S]`` (None: 0), in 0..1.

    From some tokens and some latents, evenly spaced; the largest estimate of the processes that share the latents,
    which have to cut alike.
    """
    with torch.no_grad():
        tokens = x[:: max(1, x.shape[0] // SAMPLE_TOKENS)]
        every = slice(None, None, max(1, W_enc.shape[1] // SAMPLE_LATENTS))
        pre = torch.addmm(b_enc[every], tokens - b_dec, W_enc[:, every])
        above = pre > (0 if lower is None else lower[every])
        share = above.sum().double() / max(1, above.numel())
        return float(parallel.gather_latents(share.reshape(1)).max())


def slices(length: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` of a length, the last one shorter."""
    for start in range(0, length, max(1, step)):
        yield slice(start, min(start + max(1, step), length))

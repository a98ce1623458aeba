"""Tokens as they are stored: bfloat16, or int8 with one float32 scale per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.activations.options import Store

DTYPES: dict[Store, torch.dtype] = {"bfloat16": torch.bfloat16, "int8": torch.int8}
_LARGEST = 127


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens of b images."""

    tokens: Tensor
    """[b, T, D] bfloat16 or int8."""
    scale: Tensor | None
    """float32 [b, T] of int8 tokens: a token is its int8 values times its scale."""

    def __getitem__(self, rows: slice) -> Packed:
        """Some of the images, in the same memory."""
        return Packed(self.tokens[rows], None if self.scale is None else self.scale[rows])

    def unpack(self) -> Tensor:
        """[b, T, D]: float32 from int8, bfloat16 as it is."""
        return self.tokens if self.scale is None else self.tokens.float().mul_(self.scale[..., None])


def empty_packed(images: int, tokens: int, width: int, store: Store, pinned: bool = False) -> Packed:
    """Memory for b images of T tokens, page-locked where `pinned`."""
    levels = torch.empty(images, tokens, width, dtype=DTYPES[store], pin_memory=pinned)
    return Packed(levels, torch.empty(images, tokens, pin_memory=pinned) if store == "int8" else None)


def pack(tokens: Tensor, store: Store) -> Packed:
    """Tokens [b, T, D] of any float dtype, finite, as stored.

    int8: scale = max |x| / 127 over the token, rounded to the nearest, so that every value is off by at most half a
    scale. A token of zeros has the scale 0.
    """
    if store == "bfloat16":
        return Packed(tokens.to(torch.bfloat16), None)
    values = tokens.float()
    scale = values.abs().amax(dim=-1) / _LARGEST
    divisor = torch.where(scale > 0, scale, 1.0)
    levels = (values / divisor[..., None]).round_().clamp_(-_LARGEST, _LARGEST)
    return Packed(levels.to(torch.int8), scale)


def image_bytes(tokens: int, width: int, store: Store) -> int:
    """Bytes of an image of T tokens of width D on disk and in the reader's buffer."""
    return tokens * (2 * width if store == "bfloat16" else width + 4)

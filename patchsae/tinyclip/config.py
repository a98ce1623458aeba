"""What `patchsae tinyclip` trains: sizes of the model and settings of the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TinyClipConfig:
    """Sizes of a small CLIP and how it is trained; checked on creation (ValueError names the field)."""

    image_size: int = 64
    """Side of the pictures in pixels."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    width: int = 128
    """Width of the vision tower's residual stream."""
    layers: int = 4
    """Blocks of the vision tower; a SAE reads the output of the last but one."""
    head_width: int = 32
    """Width of an attention head of the vision tower."""
    embed_dim: int = 128
    """Size of the joint embedding."""
    text_width: int = 64
    """Width of the text tower."""
    text_layers: int = 2
    """Blocks of the text tower."""
    context_length: int = 32
    """Text tokens, start and end included."""
    steps: int = 5000
    """Optimiser steps."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 1e-3
    """Peak learning rate: linear warm-up over a twentieth of the steps, then a cosine down to zero."""
    weight_decay: float = 0.05
    """Of AdamW, on matrices only."""
    augment: bool = False
    """Mirror images left to right at random and shift them by up to an eighth of their side."""
    seed: int = 0
    """Of the starting weights, the order of the images and the choice of captions."""

    def __post_init__(self) -> None:
        for name in (
            "image_size",
            "patch_size",
            "width",
            "embed_dim",
            "text_width",
            "text_layers",
            "steps",
            "batch_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.layers < 2:
            raise ValueError(f"layers is {self.layers}; expected at least 2, a SAE reads the last but one")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size is {self.patch_size}; expected a divisor of image_size {self.image_size}")
        if self.width % 4:
            raise ValueError(f"width is {self.width}; expected a multiple of 4, for positions")
        if self.width % self.head_width:
            raise ValueError(f"head_width is {self.head_width}; expected a divisor of width {self.width}")

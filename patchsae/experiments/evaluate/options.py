"""What `patchsae evaluate` can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.errors import require
from patchsae.experiments.options import PromptOptions, StreamOptions


@dataclass(frozen=True)
class EvaluateOptions(PromptOptions, StreamOptions):
    """`patchsae evaluate`: how good an autoencoder is on images."""

    batch_size: int = 128
    """Images that go through the tower together, and that the contrastive loss tells apart (released: 128)."""
    dense_above: float = 0.1
    """A latent that is active on more than this share of the tokens is dense."""
    seed: int = 0
    """Seed of the order of the images, which decides which images share a batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.dense_above <= 1, "dense_above", self.dense_above, "a share from 0 to 1")
        require(self.seed >= 0, "seed", self.seed, "an integer of at least 0")

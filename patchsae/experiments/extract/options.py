"""What `patchsae extract` can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.errors import require
from patchsae.experiments.options import DisplayOptions, StreamOptions


@dataclass(frozen=True)
class ExtractOptions(StreamOptions, DisplayOptions):
    """`patchsae extract`: read the latents in one pass over a dataset."""

    threshold: float = 0.2
    """tau: a token counts for a latent when its activation is larger."""
    top: int = 10
    """Reference images and top patches kept of every latent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold >= 0, "threshold", self.threshold, "a number of at least 0")
        require(self.top >= 1, "top", self.top, "an integer of at least 1")

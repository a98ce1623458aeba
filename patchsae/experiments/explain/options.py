"""What `patchsae explain` can be told. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patchsae.experiments.options import DisplayOptions


@dataclass(frozen=True)
class ExplainOptions(DisplayOptions):
    """`patchsae explain`: the top latents of images, or of one patch of each."""

    patch: tuple[int, int] | None = None
    """Row and column of a patch on the token grid, from 0 at the top left; None explains the whole image."""
    show_latents: int = 5
    """Latents explained of every image."""
    noisy_above: float = math.inf
    """Leave out latents whose mean activation over the dataset of the extraction exceeds this."""

"""What `patchsae classes` can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.errors import require


@dataclass(frozen=True)
class ClassesOptions:
    """`patchsae classes`: order the latents by class, by dataset and at random."""

    top: int = 10
    """Latents of every class in the table."""
    seed: int = 0
    """Seed of the random ordering."""
    common_top: int = 20
    """With `common_classes`: how far down a class's ranking a latent counts as found."""
    common_classes: int = 0
    """Latents found in more classes than this go to the end of every class ranking (the authors' later library: 500 of
    ImageNet's 1000); 0 leaves the rankings as they are."""

    def __post_init__(self) -> None:
        require(self.top >= 1, "top", self.top, "an integer of at least 1")
        require(self.seed >= 0, "seed", self.seed, "an integer of at least 0")
        require(self.common_top >= 1, "common_top", self.common_top, "an integer of at least 1")
        require(self.common_classes >= 0, "common_classes", self.common_classes, "an integer of at least 0")

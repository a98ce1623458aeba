"""The sizes at which ops are checked and timed, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Shape(NamedTuple):
    """N tokens of width D, S latents."""

    n: int
    d: int
    s: int


@dataclass(frozen=True)
class Size:
    """``images`` of ``tokens`` tokens of width ``d_in``, ``d_sae`` latents, about ``l0`` of them active per token.

    Attributes:
        topk: the k of the top-k cases; the middle one also serves decode.
        ks: the sweep, as far as there are latents; d_sae is appended.
        classes: of the per-class tables.
        sample: tokens compared with float64.
        sets: input sets that take turns while timing.
    """

    images: int
    tokens: int
    d_in: int
    d_sae: int
    l0: int
    topk: tuple[int, ...] = (32, 64, 256)
    ks: tuple[int, ...] = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)
    classes: int = 10
    sample: int = 44
    sets: int = 1

    @property
    def n(self) -> int:
        return self.images * self.tokens

    @property
    def shape(self) -> Shape:
        return Shape(self.n, self.d_in, self.d_sae)

    @property
    def middle_k(self) -> int:
        return self.topk[len(self.topk) // 2]

    @property
    def sweep(self) -> tuple[int, ...]:
        """The ks and S: with all latents kept the sweep is the plain reconstruction."""
        return (*(k for k in self.ks if k < self.d_sae), self.d_sae)


SIZES = {
    "small": Size(images=4, tokens=65, d_in=128, d_sae=2048, l0=20),
    "image": Size(images=1, tokens=197, d_in=768, d_sae=49_152, l0=149),
    "paper": Size(images=8, tokens=197, d_in=768, d_sae=49_152, l0=149),
    "large": Size(images=32, tokens=197, d_in=768, d_sae=49_152, l0=149),
}
PAPER_BATCH_ON_GPU = 128
"""Images of "paper" there."""

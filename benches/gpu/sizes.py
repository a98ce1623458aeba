"""The shapes that are checked and measured."""

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
    """One scale at which the whole harness runs.

    Attributes:
        images, tokens, d_in, d_sae: N = images * tokens.
        l0: mean number of active latents per token.
        topk: the k of the top-k lines; the middle one also serves decode.
        ks: the sweep; d_sae is appended.
        classes: of the per-class tables.
        sample: tokens compared with float64.
        sets: input sets that take turns while timing; together they exceed the L2.
        awkward: shapes that fit no tile.
        dense_images: images of the half-active input (the released start).
        other_l0: further L0 at which the designs are timed.
        copy_mb, product: the ceilings: megabytes copied, and the side of a square product.
        clip, pixels: model and image side of the masking sweep; seed-made weights, nothing is downloaded.
        masked_images, prediction_classes: of the masking sweep.
    """

    images: int
    tokens: int
    d_in: int
    d_sae: int
    l0: int
    topk: tuple[int, ...]
    ks: tuple[int, ...]
    classes: int
    sample: int
    sets: int
    awkward: tuple[Shape, ...]
    dense_images: int
    other_l0: tuple[int, ...]
    copy_mb: int
    product: int
    clip: str
    masked_images: int
    prediction_classes: int

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
        return (*self.ks, self.d_sae)


PAPER = Size(
    images=128,
    tokens=197,
    d_in=768,
    d_sae=49_152,
    l0=149,
    topk=(32, 64, 256),
    ks=(1, 2, 5, 10, 50, 100, 500, 1000, 2000),
    classes=10,
    sample=44,
    sets=3,
    awkward=(
        Shape(1, 768, 49_152),
        Shape(197, 768, 49_152),
        Shape(1000, 100, 1000),
        Shape(1000, 1024, 65_537),
        Shape(197, 768, 131_072),
        Shape(1, 100, 1000),
        Shape(197, 100, 65_537),
        Shape(1000, 1024, 131_072),
    ),
    dense_images=8,
    other_l0=(32, 600),
    copy_mb=4096,
    product=8192,
    clip="ViT-B-16-quickgelu",
    masked_images=128,
    prediction_classes=1000,
)
TINY = Size(
    images=2,
    tokens=2,
    d_in=20,
    d_sae=48,
    l0=6,
    topk=(3,),
    ks=(1, 20),
    classes=2,
    sample=4,
    sets=2,
    awkward=(Shape(1, 33, 50),),
    dense_images=1,
    other_l0=(3,),
    copy_mb=1,
    product=64,
    clip="tiny",
    masked_images=1,
    prediction_classes=5,
)
SIZES = {"paper": PAPER, "tiny": TINY}

"""The scales at which the whole harness runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from patchsae.bench.sizes import PAPER_BATCH_ON_GPU, Shape, Size
from patchsae.bench.sizes import SIZES as NAMED


@dataclass(frozen=True, kw_only=True)
class Scale(Size):
    """A size whose input sets together exceed the L2, and what else the stages need.

    Attributes:
        awkward: shapes that fit no tile.
        dense_images: images of the half-active input (the released start).
        other_l0: further L0 at which the designs are timed.
        copy_mb, product: the ceilings: megabytes copied, and the side of a square product.
        clip: model of the masking sweep; seed-made weights, nothing is downloaded.
        masked_images, prediction_classes: of the masking sweep.
    """

    awkward: tuple[Shape, ...]
    dense_images: int
    other_l0: tuple[int, ...]
    copy_mb: int
    product: int
    clip: str
    masked_images: int
    prediction_classes: int


PAPER = Scale(
    **asdict(NAMED["paper"]) | {"images": PAPER_BATCH_ON_GPU, "sets": 3},
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
TINY = Scale(
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

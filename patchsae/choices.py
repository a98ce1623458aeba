"""What every verb can be told about images and models. Imports no torch, so that help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Images:
    """Which images."""

    images: str | None = None
    """A folder of class folders, a folder of images, parquet files (a path or a quoted glob), a CoOp directory, a
    `save_to_disk` folder, or "shapes" (drawn by this package). Left out: those the SAE was trained on."""
    split: str | None = None
    """Split of the source, such as "train" or "test"; a slice such as "train[:80%]" or "[40000:]" takes a part."""
    limit: int | None = None
    """At most this many images, drawn evenly over the classes."""
    limit_seed: int = 0
    """Seed of that draw."""


@dataclass(frozen=True)
class Model:
    """Which CLIP."""

    model: str | None = None
    """A model of open_clip ("ViT-B-16-quickgelu"), "tiny" (shipped with this package) or "local-dir:PATH". Left out:
    the one the SAE was trained on; for `train`, "tiny"."""
    pretrained: str | None = None
    """A tag of open_clip ("openai"), a file of weights, or "random"."""
    layer: int | None = None
    """Block whose output is the residual stream, counted as Python counts; for `train`, -2: the last but one."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", ...; "auto" is CUDA where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the CLIP; the SAE works in float32."""

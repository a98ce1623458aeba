"""One side of a comparison: a model and the images it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.provenance import describe_images, describe_model


@dataclass(frozen=True, eq=False)
class Side:
    """A model and the images it looks at."""

    name: str
    """What tables and the report call it."""
    clip: AnyCLIP
    dataset: ImageDataset


def describe_side(side: Side) -> dict[str, Any]:
    """Name, model and images of a side."""
    return {"name": side.name, "clip": describe_model(side.clip), "dataset": describe_images(side.dataset)}


def require_same_tokens(first: Side, second: Side) -> None:
    """ValueError unless both models see the same pixels of an image, cut into the same tokens."""
    ours, theirs = repr(first.clip.preprocess), repr(second.clip.preprocess)
    if ours != theirs:
        raise ValueError(f"{second.name} preprocesses images by {theirs}; expected what {first.name} does, {ours}")
    if first.clip.image_tokens != second.clip.image_tokens:
        raise ValueError(
            f"{second.name} has {second.clip.image_tokens} tokens per image; "
            f"expected those of {first.name}, {first.clip.image_tokens}"
        )

"""Which images show which concepts, and where: the ground truth of a concept score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchsae.data.base import ImageDataset, Subset
from patchsae.data.shapes import FACTORS, Scene, ShapesWorld
from patchsae.data.shapes.factors import OBJECT_FACTORS

MOST_CLASSES = 100
"""A dataset with more classes has no class concepts: the score compares every latent with every concept."""


class Concepts(Protocol):
    """V concepts of a dataset's images. Positions are those in the dataset."""

    @property
    def names(self) -> Sequence[tuple[str, str]]:
        """(group, concept) of every concept, such as ("colour", "red")."""
        ...

    def present(self, images: Sequence[int]) -> Tensor:
        """bool [B, V]: whether each image shows each concept."""
        ...

    def masks(self, images: Sequence[int]) -> Tensor | None:
        """bool [B, V, P]: the patches, in raster order, that show each concept; None where nobody knows."""
        ...


class Truth(NamedTuple):
    """The ground truth of a batch of B images, as `ConceptCounts.update` takes it."""

    images: Tensor
    """int64 [B]: positions in the dataset."""
    present: Tensor
    """bool [B, V]."""
    masks: Tensor | None
    """bool [B, V, P], or None."""


def truth_of(concepts: Concepts, images: Tensor) -> Truth:
    """The truth about the images at these positions, int64 [B]."""
    listed = images.tolist()
    return Truth(images, concepts.present(listed), concepts.masks(listed))


class ShapeFactors:
    """Every value of every factor of the shapes world; where an object of the picture has it, or the picture itself.

    A small second object counts like the main one: a latent for red that finds a small red star is right.

    Args:
        world: the pictures.
        positions: int64 [n], the picture of every image of the dataset.
        grid: rows and columns of patches.
    """

    names: Sequence[tuple[str, str]] = tuple((factor, value) for factor, values in FACTORS.items() for value in values)

    def __init__(self, world: ShapesWorld, positions: np.ndarray, grid: tuple[int, int]) -> None:
        self.world, self.positions, self.grid = world, positions, grid

    def present(self, images: Sequence[int]) -> Tensor:
        scenes = [self.world.factors(int(self.positions[i])) for i in images]
        return torch.tensor([[any(_shown(scene, *name)) for name in self.names] for scene in scenes])

    def masks(self, images: Sequence[int]) -> Tensor:
        """bool [B, V, P]: patches of which the factor covers at least half."""
        return torch.stack([self._masks(int(self.positions[i])) for i in images])

    def _masks(self, picture: int) -> Tensor:
        scene = self.world.factors(picture)
        found = torch.zeros(len(self.names), self.grid[0] * self.grid[1], dtype=torch.bool)
        drawn: dict[tuple[bool, ...], Tensor] = {}  # values of the same objects have the same mask
        for v, (factor, value) in enumerate(self.names):
            shown = _shown(scene, factor, value)
            if not any(shown):
                continue
            key = (*shown, factor == "background")
            if key not in drawn:
                pixels = torch.from_numpy(self.world.mask(picture, factor, value)).float()
                # ShapesWorld.patch_mask, but also where a patch is no whole number of pixels
                drawn[key] = F.adaptive_avg_pool2d(pixels[None, None], self.grid).flatten() >= 0.5
            found[v] = drawn[key]
        return found


class Classes:
    """The classes of a labelled dataset. Where in an image its class shows is not known."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.labels = torch.from_numpy(dataset.labels)
        self.classnames = dataset.classnames or []

    @cached_property
    def names(self) -> Sequence[tuple[str, str]]:
        return tuple(("class", name) for name in self.classnames)

    def present(self, images: Sequence[int]) -> Tensor:
        return self.labels[list(images), None] == torch.arange(len(self.classnames))

    def masks(self, images: Sequence[int]) -> None:
        return None


def concepts_of(dataset: ImageDataset, grid: tuple[int, int]) -> Concepts | None:
    """The factors of shapes; else the classes, up to MOST_CLASSES of them; None for a dataset without either.

    grid: rows and columns of the patches of an image.
    """
    positions, inner = np.arange(len(dataset)), dataset
    while isinstance(inner, Subset):
        positions, inner = inner.indices[positions], inner.parent
    if isinstance(inner, ShapesWorld):
        return ShapeFactors(inner, positions, grid)
    if dataset.classnames is not None and 2 <= len(dataset.classnames) <= MOST_CLASSES:
        return Classes(dataset)
    return None


def _shown(scene: Scene, factor: str, value: str) -> tuple[bool, ...]:
    """Which objects of a picture show a value of a factor."""
    if factor in OBJECT_FACTORS:
        return tuple(getattr(thing, factor) == value for thing in scene.objects)
    return (scene.value(factor) == value,) * len(scene.objects)

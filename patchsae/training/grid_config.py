"""A grid of autoencoders: the options of `train`, of which some take several values. Imports no torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any

from patchsae.cli.choices import Model
from patchsae.training.config import TrainConfig, Variant

STRENGTH = {"relu": "l1", "gated": "l1", "jumprelu": "l0", "topk": "k", "batchtopk": "k", "matryoshka": "k"}
"""Variant -> the option that says how sparse it is, and along which its frontier runs."""
SWEPT = ("variant", "l1", "k", "l0", "expansion")


@dataclass(frozen=True)
class Cell:
    """One autoencoder of a grid."""

    layer: int
    """Block whose output it reads, 0-based."""
    config: TrainConfig

    @property
    def strength(self) -> tuple[str, float]:
        """("k", 32): the option that sets the sparsity, and its value."""
        option = STRENGTH[self.config.variant]
        return option, getattr(self.config, option)

    @property
    def name(self) -> str:
        """Unique in a grid, and a folder's name: "topk-k32-x8-block10"."""
        option, value = self.strength
        sparsity = f"k{value}" if option == "k" else f"{option}-{value}".replace("+", "")
        return f"{self.config.variant}-{sparsity}-x{self.config.expansion}-block{self.layer}"


@dataclass(frozen=True)
class Tower(Model):
    """Which CLIP, and after which of its blocks."""

    layer: tuple[int, ...] = ()  # type: ignore[assignment]
    """Blocks whose outputs are read, counted as Python counts: one pass of the tower gives all of them. Left out: -2,
    the last but one."""

    @property
    def clip(self) -> Model:
        """The CLIP alone."""
        return Model(self.model, self.pretrained, None, self.device, self.dtype)

    def blocks(self, layers: int) -> list[int]:
        """The blocks of a tower with so many, 0-based, ascending, each once. ValueError outside of it."""
        for layer in self.layer:
            if not -layers <= layer < layers:
                raise ValueError(f"layer is {layer}; the tower has {layers} blocks: expected {-layers}..{layers - 1}")
        return sorted({layer % layers for layer in self.layer or (-2,)})


@dataclass(frozen=True)
class Grid(TrainConfig):
    """The recipe of `train`. Where an option takes several values, every combination is trained; a variant is combined
    with the values of its own sparsity option only."""

    variant: tuple[Variant, ...] = ("relu",)  # type: ignore[assignment]
    """Variants: relu, topk, batchtopk, jumprelu, gated, matryoshka."""
    expansion: tuple[int, ...] = (64,)  # type: ignore[assignment]
    """Latents per dimension of the residual stream."""
    l1: tuple[float, ...] = (8e-5,)  # type: ignore[assignment]
    """relu, gated: coefficients of the mean over tokens of the sum of a token's latents."""
    k: tuple[int, ...] = (32,)  # type: ignore[assignment]
    """topk, batchtopk, matryoshka: latents kept per token."""
    l0: tuple[float, ...] = (1e-3,)  # type: ignore[assignment]
    """jumprelu: coefficients of the mean number of active latents per token."""

    def __post_init__(self) -> None:
        for name in SWEPT:
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected at least one value")
        if self.latent_shards != 1:
            raise ValueError(f"latent_shards is {self.latent_shards}; a sweep runs in one process: expected 1")
        self.cells([0])  # each has its values checked

    def cells(self, blocks: list[int]) -> list[Cell]:
        """All autoencoders of the grid, on these blocks (0-based); values that are given twice count once."""
        shared = {field.name: getattr(self, field.name) for field in fields(TrainConfig) if field.name not in SWEPT}
        found: dict[str, Cell] = {}
        for layer, variant, expansion in itertools.product(blocks, self.variant, self.expansion):
            option = STRENGTH[variant]
            for value in getattr(self, option):
                chosen: dict[str, Any] = {"variant": variant, "expansion": expansion, option: value}
                cell = Cell(layer, TrainConfig(**shared, **chosen))
                found.setdefault(cell.name, cell)
        return list(found.values())


@dataclass(frozen=True)
class GridOptions:
    """How a grid is trained and judged."""

    memory_gb: float | None = None
    """Memory that the sweep may take; a grid that needs more is cut into groups, each with a pass of its own. Left out:
    four fifths of what is free."""
    test_images: str | None = None
    """Source of the images that the autoencoders are judged on; left out: that of --images."""
    test_split: str = "test"
    """Split of it: not the one that is trained on."""
    test_limit: int | None = 1000
    """At most this many of them, drawn evenly over the classes."""

    def __post_init__(self) -> None:
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"memory_gb is {self.memory_gb}; expected a number above 0")
        if self.test_limit is not None and self.test_limit < 1:
            raise ValueError(f"test_limit is {self.test_limit}; expected an integer of at least 1")

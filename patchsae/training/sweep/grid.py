"""A grid of autoencoders: the options of `train`, of which some take several values. Imports no torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any

from patchsae.training.config import STRENGTH, SWEPT, TrainConfig, TrainRecipe, VariantName


@dataclass(frozen=True)
class Trial:
    """One autoencoder of a grid: a combination of its values, on one block."""

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
class Grid(TrainRecipe):
    """The recipe of `train`. Where an option takes several values, every combination is trained; a variant is combined
    with the values of its own sparsity option only."""

    variant: tuple[VariantName, ...] = ("relu",)
    """Variants: relu, topk, batchtopk, jumprelu, gated, matryoshka."""
    expansion: tuple[int, ...] = (64,)
    """Latents per dimension of the residual stream."""
    l1: tuple[float, ...] = (8e-5,)
    """relu, gated: coefficients of the mean over tokens of the sum of a token's latents."""
    k: tuple[int, ...] = (32,)
    """topk, batchtopk, matryoshka: latents kept per token."""
    l0: tuple[float, ...] = (1e-3,)
    """jumprelu: coefficients of the mean number of active latents per token."""

    def __post_init__(self) -> None:
        for name in SWEPT:
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected at least one value")
        if self.latent_shards != 1:
            raise ValueError(
                f"latent_shards is {self.latent_shards}; processes share the images of a sweep, so expected 1"
            )
        self.trials([0])  # each has its values checked

    def trials(self, blocks: list[int]) -> list[Trial]:
        """All autoencoders of the grid, on these blocks (0-based); values that are given twice count once."""
        shared = {field.name: getattr(self, field.name) for field in fields(TrainRecipe) if field.name not in SWEPT}
        found: dict[str, Trial] = {}
        for layer, variant, expansion in itertools.product(blocks, self.variant, self.expansion):
            option = STRENGTH[variant]
            for value in getattr(self, option):
                chosen: dict[str, Any] = {"variant": variant, "expansion": expansion, option: value}
                trial = Trial(layer, TrainConfig(**shared, **chosen))
                found.setdefault(trial.name, trial)
        return list(found.values())

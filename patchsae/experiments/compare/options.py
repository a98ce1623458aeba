"""What `patchsae compare` can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from patchsae.errors import require
from patchsae.experiments.mask.options import TopKOptions
from patchsae.experiments.options import DisplayOptions, GroupOptions, PromptOptions, StreamOptions


@dataclass(frozen=True)
class CompareOptions(GroupOptions, PromptOptions, StreamOptions, DisplayOptions):
    """`patchsae compare`: two models, or two datasets, through one SAE."""

    threshold: float = 0.2
    """tau: a token counts for a latent when its activation is larger."""
    top: int = 10
    """Latents of an image or a class that are compared, and reference images kept of every latent."""
    high: int = 50
    """A latent is high in a class when it is among so many of the class's most frequent ones."""
    low: int = 100
    """A latent is low in a class when it is not among so many of the class's most frequent ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold >= 0, "threshold", self.threshold, "a number of at least 0")
        require(self.top >= 1, "top", self.top, "an integer of at least 1")
        require(self.high >= 1, "high", self.high, "an integer of at least 1")
        require(self.low >= self.high, "low", self.low, f"an integer of at least high = {self.high}")


@dataclass(frozen=True)
class CrossOptions(GroupOptions, TopKOptions, PromptOptions, StreamOptions):
    """The masking half of `patchsae compare`: rankings of both sides applied in the models of both."""

    sweep: bool = True
    """Whether masks are swept; without, the models are classified as they are and reconstructed."""


def cross_options(compare: CompareOptions, sweep: TopKOptions, *, swept: bool = True) -> CrossOptions:
    """The settings of the masking half of a comparison: what both halves share comes from the first."""
    shared = {name: value for options in (compare, sweep) for name, value in asdict(options).items()}
    wanted = {field.name for field in fields(CrossOptions)} - {"sweep"}
    return CrossOptions(sweep=swept, **{name: shared[name] for name in wanted})

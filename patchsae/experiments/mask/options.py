"""What `patchsae mask`, and all else that masks latents, can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.errors import require
from patchsae.experiments.options import Options, PromptOptions, StreamOptions

KS = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)
RANKINGS = ("class", "dataset", "random")


@dataclass(frozen=True)
class TopKOptions(Options):
    """Which masks a top-k sweep applies, and to what."""

    ks: tuple[int, ...] = KS
    """Numbers of latents; those above S are dropped and S is always added."""
    keep_prompt_tokens: bool = False
    """Leave a prompted model's prompt tokens as they are; otherwise they are replaced like the image's, as in the
    paper."""
    budget_mb: int = 512
    """Bound on the reconstructions held at a time, and once more on what embedding them takes beside them, in MB."""
    bias_offset: float = 0.0
    """Added to every element of every reconstruction. The released code adds 0.105131256516992, left over from one
    checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(k >= 1 for k in self.ks), "ks", self.ks, "numbers of at least 1")
        require(self.budget_mb >= 1, "budget_mb", self.budget_mb, "an integer of at least 1")


@dataclass(frozen=True)
class MaskOptions(TopKOptions, PromptOptions, StreamOptions):
    """`patchsae mask`: classify with only the first k latents of a ranking kept, or with those ablated."""

    rankings: tuple[str, ...] = RANKINGS
    """Rankings to sweep, of those that `patchsae classes` made."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.rankings) >= 1, "rankings", self.rankings, "at least one name")

"""What a cache of activations is made of. Imports no torch, so that the command line can show it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Store = Literal["bfloat16", "int8"]
OnBadImage = Literal["stop", "skip"]


@dataclass(frozen=True)
class CacheOptions:
    """How tokens are kept on disk."""

    store: Store = "bfloat16"
    """`bfloat16`, or `int8` with one float32 scale per token: half the size."""
    tokens_per_image: int | None = None
    """Tokens drawn at random from each image; left out: all of them."""
    shard_mb: float = 128
    """About the size of a file, in MB; a killed writer loses at most one."""
    batch_size: int = 64
    """Images that go through the tower at once."""
    seed: int = 0
    """Seed of the order in which images are written, and of the tokens that are drawn."""
    on_bad_image: OnBadImage = "stop"
    """`stop` names the first image that cannot be decoded; `skip` leaves such images out and counts them."""

    def __post_init__(self) -> None:
        for name, choices in (("store", get_args(Store)), ("on_bad_image", get_args(OnBadImage))):
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        self._require("batch_size", self.batch_size >= 1, "an integer of at least 1")
        self._require("seed", self.seed >= 0, "an integer of at least 0")
        self._require("shard_mb", self.shard_mb > 0, "a number above 0")
        tokens = self.tokens_per_image
        self._require("tokens_per_image", tokens is None or tokens >= 1, "an integer of at least 1")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"CacheOptions.{name} is {getattr(self, name)!r}; expected {expected}")

"""What a training run is made of. Imports no torch, so that the command line can show it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Start = Literal["geometric-median", "token-median", "mean", "zeros"]
OnBadImage = Literal["stop", "skip"]


@dataclass(frozen=True)
class TrainConfig:
    """The released recipe; every default is the value that the published checkpoints were trained with."""

    expansion: int = 64
    """Latents per dimension of the residual stream: S = expansion * D."""
    l1: float = 8e-5
    """Coefficient of the mean over tokens of the sum of a token's latents."""
    lr: float = 4e-4
    """Adam's learning rate after the warm-up; its betas are PyTorch's defaults."""
    warm_up_steps: int = 500
    """Steps over which the learning rate rises linearly; it is constant afterwards."""
    batch_size: int = 128
    """Images in a step; all tokens of an image are trained on."""
    total_images: int = 2_621_440
    """Images in the whole run, passes over the data included; rounded up to full batches."""
    seed: int = 42
    """Seed of the initial weights and of the order of the images."""
    dead_window: int = 64
    """A latent is dead when it has not fired for more than this many steps."""
    ghost: bool = True
    """Whether dead latents receive ghost gradients."""
    cls_weight: float = 1.0
    """Weight of the CLS token's squared error."""
    start: Start = "geometric-median"
    """b_dec at the start, from one batch that is not trained on: `geometric-median` (over images of whole token grids,
    then averaged over tokens, as released), `token-median` (geometric median over tokens), `mean` or `zeros`."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl; the first and the last step are always written."""
    checkpoint_steps: int = 1000
    """Steps between two checkpoints."""
    checkpoint_minutes: float = 10.0
    """Minutes after which a checkpoint is written even if `checkpoint_steps` have not passed."""
    on_bad_image: OnBadImage = "stop"
    """`stop` names the first image that cannot be decoded; `skip` leaves such images out and counts them."""

    def __post_init__(self) -> None:
        for name in ("expansion", "batch_size", "total_images", "log_every", "checkpoint_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        for name in ("l1", "warm_up_steps", "dead_window", "cls_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number of at least 0")
        for name in ("lr", "checkpoint_minutes"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name, choices in (("start", get_args(Start)), ("on_bad_image", get_args(OnBadImage))):
            _require(getattr(self, name) in choices, name, getattr(self, name), f"one of {', '.join(choices)}")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.total_images // self.batch_size)


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"TrainConfig.{name} is {value!r}; expected {expected}")

"""What a training run is made of. Imports no torch, so that the command line can show it at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from patchsae.activations.options import OnBadImage
from patchsae.activations.plan import NeedsImages, StreamPlan

VariantName = Literal["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"]
Loss = Literal["released", "published"]
DeadTerm = Literal["ghost", "auxk", "resample", "none"]
Init = Literal["independent", "tied", "data"]
Start = Literal["geometric-median", "token-median", "mean", "zeros"]
Normalise = Literal["none", "norm", "standardise"]
STRENGTH = {"relu": "l1", "gated": "l1", "jumprelu": "l0", "topk": "k", "batchtopk": "k", "matryoshka": "k"}
"""Variant -> the option that says how sparse it is, and along which its frontier runs."""
SWEPT = ("variant", "l1", "k", "l0", "expansion")
"""Options of which a sweep takes several values."""
MAY_DIFFER = (
    "workers",
    "latent_shards",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "on_bad_image",
)
"""Settings that do not decide the result, so that a training that goes on may change them (`Stage.begin`)."""


@dataclass(frozen=True)
class TrainRecipe:
    """The options of `train`, and of `sweep`, which takes several values of those in `SWEPT`."""

    variant: VariantName | tuple[VariantName, ...] = "relu"
    expansion: int | tuple[int, ...] = 64
    loss: Loss = "released"
    """Squared error e^2 of a token x: `released` is the mean over tokens and dimensions of e^2 / |x|, `published` the
    mean over tokens of its sum over dimensions. The sparsity term is the same in both."""
    l1: float | tuple[float, ...] = 8e-5
    k: int | tuple[int, ...] = 32
    l0: float | tuple[float, ...] = 1e-3
    bandwidth: float = 1e-3
    """jumprelu: width of the band around a threshold in which pre-activations give it a gradient."""
    threshold: float = 1e-3
    """jumprelu: thresholds at the start. They are trained as logarithms and so move by factors, about e^lr a step: a
    short training wants them, and the bandwidth, near the size of the latents that it is to drop."""
    prefixes: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """matryoshka: nested shares of the S latents, ascending to 1, each of which reconstructs on its own."""
    lr: float = 4e-4
    """Adam's learning rate after the warm-up; its betas are PyTorch's defaults."""
    warm_up_steps: int = 500
    """Steps over which the learning rate rises linearly; it is constant afterwards."""
    batch_size: int = 128
    """Images in a step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches that a step is cut into to save memory: gradients are summed, one update is made."""
    clip_gradient: float | None = None
    """Largest norm of the gradient of all parameters together; left out: not limited."""
    total_images: int = 2_621_440
    """Images in the whole run, passes over the data included; rounded up to full batches."""
    tokens_per_image: int | None = None
    """Tokens drawn at random from each image; left out: all of them."""
    cls_only: bool = False
    """Whether the CLS token of each image is trained on alone."""
    shuffle: int = 0
    """Batches whose tokens are mixed with one another, so that a step sees more images; 0 mixes nothing (released)."""
    seed: int = 42
    """Seed of the initial weights, of the order of the images and of everything else that is drawn."""
    dead_window: int = 64
    """A latent is dead when it has not fired for more than this many steps."""
    dead_term: DeadTerm = "ghost"
    """What revives dead latents: `ghost` gradients (released), `auxk` (the top dead latents reconstruct the error),
    `resample` (their weights are drawn anew from tokens with a large error) or `none`."""
    auxk: int = 256
    """dead_term auxk: dead latents that reconstruct the error of a token."""
    auxk_coefficient: float = 1 / 32
    """dead_term auxk: coefficient of that reconstruction's error."""
    resample_every: int = 1000
    """dead_term resample: steps between two resamplings."""
    cls_weight: float = 1.0
    """Weight of the CLS token's squared error; not with tokens_per_image or shuffle, which do not tell it apart."""
    init: Init = "independent"
    """Weights at the start: `independent` draws of W_enc and W_dec (released), `tied` (W_enc is W_dec transposed, times
    what suits the first batches) or `data` (tied, the rows of W_dec are tokens of the first batches)."""
    start: Start = "geometric-median"
    """b_dec at the start, from batches that are not trained on: `geometric-median` (over images of whole token grids,
    then averaged over tokens, as released), `token-median` (geometric median over tokens), `mean` or `zeros`."""
    start_batches: int = 1
    """Batches that the start looks at."""
    normalise: Normalise = "none"
    """Input: `norm` scales it so that the mean of |x| is sqrt(D), `standardise` gives each dimension mean 0 and
    deviation 1, measured on the first batches. The saved autoencoder takes the input as it was."""
    latent_shards: int = 1
    """Processes that share the S latents between them; the other processes share the images."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl; the first and the last step are always written."""
    checkpoint_steps: int = 1000
    """Steps between two checkpoints."""
    checkpoint_minutes: float = 10.0
    """Minutes after which a checkpoint is written even if `checkpoint_steps` have not passed."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept: where the newest is damaged, training goes on from the one before."""
    on_bad_image: OnBadImage = "stop"
    """`stop` names the first image that cannot be decoded; `skip` leaves such images out and counts them."""


@dataclass(frozen=True)
class TrainConfig(TrainRecipe):
    """The released recipe; every default is the value that the published checkpoints were trained with."""

    variant: VariantName = "relu"
    """What makes latents sparse: `relu` with an L1 term (released), `topk` per token, `batchtopk` over the batch,
    `jumprelu` with trained thresholds, `gated`, or `matryoshka` (batchtopk over nested prefixes of the latents)."""
    expansion: int = 64
    """Latents per dimension of the residual stream: S = expansion * D."""
    l1: float = 8e-5
    """relu, gated: coefficient of the mean over tokens of the sum of a token's latents."""
    k: int = 32
    """topk, batchtopk, matryoshka: latents kept per token, on average over the batch for the last two."""
    l0: float = 1e-3
    """jumprelu: coefficient of the mean number of active latents per token (Rajamanoharan et al. 2024)."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name in _AT_LEAST_1:
            self._require(name, getattr(self, name) >= 1, "an integer of at least 1")
        for name in _AT_LEAST_0:
            self._require(name, getattr(self, name) >= 0, "a number of at least 0")
        for name in _ABOVE_0:
            self._require(name, getattr(self, name) > 0, "a number above 0")
        self._require("accumulate", self.accumulate <= self.batch_size, f"at most batch_size, {self.batch_size}")
        self._require("clip_gradient", self.clip_gradient is None or self.clip_gradient > 0, "a number above 0")
        tokens = self.tokens_per_image
        self._require("tokens_per_image", tokens is None or tokens >= 1, "an integer of at least 1")
        mixed = tokens is not None or self.shuffle > 0
        self._require("cls_only", not (self.cls_only and mixed), "false with tokens_per_image or shuffle")
        self._require("cls_weight", self.cls_weight == 1 or not mixed, "1 with tokens_per_image or shuffle")
        ascending = all(a < b for a, b in zip((0.0, *self.prefixes), self.prefixes, strict=False))
        whole = bool(self.prefixes) and math.isclose(self.prefixes[-1], 1)
        self._require("prefixes", ascending and whole, "shares above 0 that ascend to 1")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.total_images // self.batch_size)

    def stream_plan(self) -> StreamPlan:
        """Which tokens a run of this recipe reads, in which order."""
        return StreamPlan(
            batch_size=self.batch_size,
            steps=self.steps,
            start_batches=self.start_batches,
            seed=self.seed,
            shuffle=self.shuffle,
            tokens_per_image=self.tokens_per_image,
            on_bad_image=self.on_bad_image,
            needs_images=self._needs_images(),
        )

    def _needs_images(self) -> NeedsImages | None:
        if self.start == "geometric-median":
            return NeedsImages(f"start is {self.start!r}", "token-median, mean or zeros")
        if self.cls_only:
            return NeedsImages("cls_only is True", "false")
        return NeedsImages(f"cls_weight is {self.cls_weight!r}", "1") if self.cls_weight != 1 else None

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"TrainConfig.{name} is {getattr(self, name)!r}; expected {expected}")


_CHOICES = {
    "variant": get_args(VariantName),
    "loss": get_args(Loss),
    "dead_term": get_args(DeadTerm),
    "init": get_args(Init),
    "start": get_args(Start),
    "normalise": get_args(Normalise),
    "on_bad_image": get_args(OnBadImage),
}
_AT_LEAST_1 = (
    "expansion",
    "k",
    "batch_size",
    "accumulate",
    "total_images",
    "auxk",
    "resample_every",
    "start_batches",
    "latent_shards",
    "log_every",
    "checkpoint_steps",
    "keep_checkpoints",
)
_AT_LEAST_0 = ("l1", "l0", "warm_up_steps", "dead_window", "shuffle", "auxk_coefficient", "cls_weight")
_ABOVE_0 = ("lr", "bandwidth", "threshold", "checkpoint_minutes")

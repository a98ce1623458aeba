"""A small real set-up for the experiments: a random CLIP, an autoencoder with sparse latents, a few shapes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.adapters import AdaptedCLIP, create
from patchsae.adapters.vpt import VPTConfig
from patchsae.data import ImageDataset
from patchsae.data.shapes import ShapesWorld
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests.small_clips import write_clip

S = 96


def make_clip(folder: Path, seed: int = 0) -> SplitCLIP:
    """A CLIP of 4 blocks, width 32, 17 tokens, split after the third block."""
    if not folder.exists():
        write_clip(folder, seed=seed)
    return load_clip(f"local-dir:{folder}", device="cpu")


def make_sae(width: int = 32, latents: int = S, seed: int = 0) -> SparseAutoencoder:
    """Random weights; about every sixth latent is active on a token, and some never are."""
    generator = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(SAEConfig(width, latents), generator)
    with torch.no_grad():
        sae.W_enc.normal_(0, width**-0.5, generator=generator)
        sae.b_enc.uniform_(-5, 0, generator=generator)
        sae.b_dec.normal_(0, 0.1, generator=generator)
    return sae


def make_images(n: int = 23, split: str = "train", seed: int = 0) -> ShapesWorld:
    """Pictures of 64 px, labelled by shape."""
    return ShapesWorld(split, n=n, seed=seed)


def pixels_of(clip: SplitCLIP, dataset: ImageDataset) -> Tensor:
    """Every image of a dataset, preprocessed: [n, 3, H, W]."""
    return torch.stack([clip.preprocess(dataset.sample(i).image) for i in range(len(dataset))])


def dense_latents(clip: SplitCLIP, sae: SparseAutoencoder, pixels: Tensor) -> Tensor:
    """relu((r - b_dec) W_enc + b_enc), [B, T, S]: the formula, without a kernel."""
    with torch.no_grad():
        return torch.relu((clip.residual(pixels) - sae.b_dec) @ sae.W_enc + sae.b_enc)


def make_prompted(clip: SplitCLIP, classnames: Sequence[str], seed: int = 0) -> AdaptedCLIP:
    """The CLIP with three prompt tokens in front of its first two blocks, large enough to move everything."""
    generator = torch.Generator().manual_seed(seed)
    adapted = create("vpt", clip, classnames, VPTConfig(n_ctx=3, depth=2))
    with torch.no_grad():
        for prompts in adapted.trainable().values():
            prompts.normal_(0, 1, generator=generator)
    return adapted


class CountingCLIP(SplitCLIP):
    """A CLIP that counts the images that go through its lower tower, and those that go through the rest."""

    lower: int
    upper: int

    @classmethod
    def of(cls, clip: SplitCLIP) -> CountingCLIP:
        counting: Any = copy.copy(clip)
        counting.__class__ = cls
        counting.lower = counting.upper = 0
        return counting

    def residual(self, pixels: Tensor) -> Tensor:
        self.lower += len(pixels)
        return super().residual(pixels)

    def embed(self, residual: Tensor) -> Tensor:
        self.upper += len(residual)
        return super().embed(residual)


class CountingSAE(SparseAutoencoder):
    """An autoencoder that counts the tokens it encodes."""

    encoded = 0

    def encode(self, r: Tensor) -> pk.SparseLatents:
        self.encoded += r.shape[:-1].numel()
        return super().encode(r)

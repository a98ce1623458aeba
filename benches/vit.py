"""What the end-to-end benchmarks run on: a ViT-B/16 with random weights, an autoencoder of it, images, rankings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from patchsae.experiments.classes.rankings import random_rank
from patchsae.experiments.mask.embeddings import sweep_ks
from patchsae.experiments.options import KS
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

NAME = "ViT-B-16-quickgelu"
LATENTS = 49_152
CLASSES = 10
ACTIVE = 149  # per token; 148.6 is what the paper reports after training


@dataclass(frozen=True, eq=False)
class Case:
    """A ViT-B/16 with random weights, an autoencoder of its last-but-one block, images and rankings."""

    clip: SplitCLIP
    sae: SparseAutoencoder
    pixels: Tensor
    labels: Tensor
    rankings: dict[str, Tensor]
    ks: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @cached_property
    def l0(self) -> float:
        return self.sae.encode(self.clip.residual(self.pixels)).l0

    @property
    def description(self) -> str:
        return f"ViT-B/16, {len(self.pixels)} images of 224 px, S = {self.sae.config.d_sae}, L0 = {self.l0:.0f}"

    @cached_property
    def classifier(self) -> Tensor:
        """[C, E] random unit directions: what predictions are compared by."""
        directions = torch.randn(CLASSES, self.clip.embed_dim, generator=torch.Generator().manual_seed(1))
        return torch.nn.functional.normalize(directions, dim=1)

    @cached_property
    def halved(self) -> SplitCLIP:
        """The same tower in bfloat16."""
        return load_clip(NAME, "random", device="cpu", dtype=torch.bfloat16)


def build_case(images: int, latents: int = LATENTS, active: int = ACTIVE) -> Case:
    """The case of the benchmarks and of the tests; ``active`` latents per token on average."""
    generator = torch.Generator().manual_seed(0)
    clip = load_clip(NAME, "random", device="cpu")
    sae = SparseAutoencoder(SAEConfig(clip.width, latents), generator)
    pixels = torch.randn(images, 3, 224, 224, generator=generator)
    _make_sparse(sae, clip.residual(pixels[:1]), active)
    ranks = torch.stack([random_rank(latents, seed) for seed in range(CLASSES)])
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    return Case(clip, sae, pixels, labels, {"class": ranks}, sweep_ks(KS, latents))


@torch.no_grad()
def _make_sparse(sae: SparseAutoencoder, residual: Tensor, active: int) -> None:
    """Centre the pre-activations of an image's tokens and set one bias that leaves ``active`` latents per token."""
    tokens = residual.reshape(-1, residual.shape[-1])
    sae.b_dec.copy_(tokens.mean(0))
    pre = (tokens - sae.b_dec) @ sae.W_enc
    rank = pre.numel() - active * len(tokens)
    sae.b_enc.fill_(-float(pre.flatten().kthvalue(rank).values))

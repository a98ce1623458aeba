"""What the end-to-end benchmarks run on: a CLIP with random weights, an autoencoder of it, images, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from patchsae.experiments.classes.rankings import random_rank
from patchsae.experiments.mask.embeddings import sweep_ks
from patchsae.experiments.mask.options import KS
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

NAME = "ViT-B-16-quickgelu"
LATENTS = 49_152
CLASSES = 10
ACTIVE = 149  # per token; 148.6 is what the paper reports after training


@dataclass(frozen=True, eq=False)
class EndToEnd:
    """A CLIP with random weights, an autoencoder of its last-but-one block, images and rankings."""

    clip: SplitCLIP
    sae: SparseAutoencoder
    pixels: Tensor
    labels: Tensor
    rankings: dict[str, Tensor]
    ks: tuple[int, ...]
    classifier: Tensor
    """[C, E] random unit directions: what predictions are compared by."""
    name: str = NAME

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
    def halved(self) -> SplitCLIP:
        """The same tower in bfloat16."""
        return load_clip(self.name, None, device=self.device, dtype=torch.bfloat16)


def build_case(
    images: int,
    latents: int = LATENTS,
    active: int = ACTIVE,
    ks: Sequence[int] = KS,
    classes: int = CLASSES,
    predicted: int = CLASSES,
    name: str = NAME,
    device: str | torch.device = "cpu",
) -> EndToEnd:
    """The case of the benchmarks and of the tests; ``active`` latents per token on average.

    ``classes`` have a ranking each; ``predicted`` is the number of the classifier's.
    """
    generator = torch.Generator().manual_seed(0)
    clip = load_clip(name, None, device=device)
    sae = SparseAutoencoder(SAEConfig(clip.width, latents), generator).to(device)
    pixels = torch.randn(images, 3, *clip.image_size, generator=generator).to(device)
    make_sparse(sae, clip.residual(pixels[:1]).flatten(0, 1), active)
    ranks = torch.stack([random_rank(latents, seed) for seed in range(classes)]).to(device)
    labels = torch.randint(0, classes, (images,), generator=generator).to(device)
    directions = torch.randn(predicted, clip.embed_dim, generator=torch.Generator().manual_seed(1))
    classifier = torch.nn.functional.normalize(directions, dim=1).to(device)
    return EndToEnd(clip, sae, pixels, labels, {"class": ranks}, sweep_ks(ks, latents), classifier, name)


@torch.no_grad()
def make_sparse(sae: SparseAutoencoder, tokens: Tensor, active: int) -> None:
    """Centre the pre-activations of tokens [N, D] and set one bias that leaves ``active`` latents per token."""
    sae.b_dec.copy_(tokens.mean(0))
    pre = ((tokens - sae.b_dec) @ sae.W_enc).flatten()
    sae.b_enc.fill_(-float(pre.kthvalue(pre.numel() - active * len(tokens)).values))
    sae.refresh()

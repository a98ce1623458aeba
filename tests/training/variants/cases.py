"""Random autoencoders of every variant, and variants with small settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.training.config import TrainConfig
from patchsae.training.variants import Variant, make

from .dense import Recipe

VARIANTS = ("relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
SPARSE = -2.5


def config_of(recipe: Recipe) -> TrainConfig:
    return TrainConfig(
        variant=recipe.variant,  # type: ignore[arg-type]
        loss="published" if recipe.published else "released",
        l1=recipe.l1,
        l0=recipe.l0,
        k=recipe.k,
        bandwidth=recipe.bandwidth,
        prefixes=recipe.prefixes,
        dead_term=recipe.dead_term,  # type: ignore[arg-type]
        auxk=recipe.auxk,
        auxk_coefficient=recipe.auxk_coefficient,
        cls_weight=recipe.cls_weight,
    )


def variant_of(recipe: Recipe) -> Variant:
    return make(config_of(recipe))


@dataclass(frozen=True)
class Case:
    """Tokens, parameters and dead latents; some of the dead ones fire all the same."""

    x: Tensor
    params: dict[str, Tensor]
    dead: Tensor


def make_case(
    variant: Variant,
    seed: int,
    *,
    images: int = 3,
    tokens: int = 4,
    width: int = 6,
    latents: int = 16,
    dead_share: float = 0.4,
    flat: bool = False,
    bias: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """A bias of SPARSE takes the variants that choose to sparse latents; at 0 about half of the latents are active."""
    generator = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(SAEConfig(width, latents)).to(dtype)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        sae.b_enc += bias
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    params = variant.parameters(sae)
    for name in params.keys() - {"W_enc", "b_enc", "W_dec", "b_dec"}:
        params[name].copy_(torch.randn(latents, generator=generator) / 2 - (0.5 if name == "log_threshold" else 0))
    x = torch.randn(images, tokens, width, generator=generator).to(dtype)
    dead = torch.rand(latents, generator=generator) < dead_share
    return Case(x.flatten(0, 1) if flat else x, params, dead)

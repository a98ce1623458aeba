"""Seeded random inputs of the benchmark, at named sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import patchsae_kernels as pk

if TYPE_CHECKING:
    from patchsae.adapters.maple import MaPLe

KS = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)
CLASSES = 10
LR = 1e-5  # so small that L0 stays where it is while steps are timed


class Size(NamedTuple):
    """``images`` of ``tokens`` tokens of width ``d_in``, ``d_sae`` latents, about ``l0`` of them active per token."""

    images: int
    tokens: int
    d_in: int
    d_sae: int
    l0: int


SIZES = {
    "small": Size(images=4, tokens=65, d_in=128, d_sae=2048, l0=20),
    "image": Size(images=1, tokens=197, d_in=768, d_sae=49152, l0=149),
    "paper": Size(images=8, tokens=197, d_in=768, d_sae=49152, l0=149),
    "large": Size(images=32, tokens=197, d_in=768, d_sae=49152, l0=149),
}
PAPER_BATCH_ON_GPU = 128


@dataclass(frozen=True, eq=False)
class Inputs:
    """Seeded random inputs of one size; x is standard normal and the encoder bias gives the wanted L0."""

    size: Size
    x: Tensor  # [N, D]
    W_enc: Tensor  # [D, S], latent-major, unit columns
    b_enc: Tensor  # [S]
    W_dec: Tensor  # [S, D], unit rows
    b_dec: Tensor  # [D]
    weights: pk.PreparedWeights
    z: pk.SparseLatents  # ReLU latents of x
    rank: Tensor  # [C, S] int32
    labels: Tensor  # [B] int64
    class_ids: Tensor  # [N] int64

    @cached_property
    def rows_used(self) -> int:
        """Latents that are active at all: rows of W_dec that a decode must read."""
        return torch.unique(self.z.indices).numel()

    @cached_property
    def rows_kept(self) -> int:
        """The same under the keep set of the masked case."""
        kept = (self.rank < 100)[self.class_ids[self.z.rows()], self.z.indices.long()]
        return torch.unique(self.z.indices[kept]).numel()

    @property
    def description(self) -> str:
        return f"N = {len(self.x)}, D = {self.size.d_in}, S = {self.size.d_sae}, L0 = {self.z.l0:.0f}"

    @property
    def device(self) -> torch.device:
        return self.x.device

    @cached_property
    def images(self) -> Tensor:
        """x as [B, T, D]."""
        return self.x.view(self.size.images, self.size.tokens, -1)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}

    @cached_property
    def ours_in_training(self) -> tuple[dict[str, Tensor], pk.AdamState]:
        """Parameters of our own to step on, and Adam's state."""
        params = {name: p.clone(memory_format=torch.preserve_format) for name, p in self.parameters.items()}
        return params, pk.adam_init(params)

    @cached_property
    def dense_in_training(self) -> tuple[dict[str, Tensor], torch.optim.Adam]:
        """The same for PyTorch."""
        params = {n: p.clone(memory_format=torch.preserve_format).requires_grad_() for n, p in self.parameters.items()}
        return params, torch.optim.Adam(list(params.values()), lr=LR)

    @cached_property
    def spare(self) -> Tensor:
        """Memory like W_dec's to write to."""
        return torch.zeros_like(self.W_dec)

    @cached_property
    def dense(self) -> Tensor:
        """[N, S], the same latents for the dense baselines: what they are about, and made only for them."""
        return self.z.to_dense()

    @cached_property
    def maple(self) -> MaPLe:
        """An untrained MaPLe on a CLIP of this size: the shipped one, or a random ViT-B/16."""
        from patchsae.adapters.maple import load_maple
        from patchsae.models.clip import load_clip

        name = {128: "tiny", 768: "ViT-B-16-quickgelu"}[self.size.d_in]
        return load_maple(load_clip(name, None, device=self.x.device), None, ["thing"])

    @cached_property
    def pixels(self) -> Tensor:
        """[B, 3, H, W], standard normal."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.size.images, 3, *self.maple.image_size, generator=generator).to(self.x.device)


def make_inputs(size: Size, device: str = "cpu", seed: int = 0) -> Inputs:
    """Inputs of a size on a device."""
    g = torch.Generator().manual_seed(seed)
    n, d, s = size.images * size.tokens, size.d_in, size.d_sae

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    x, b_dec = normal(n, d), 0.1 * normal(d)
    W_enc = F.normalize(normal(s, d), dim=1).t()
    # x - b_dec is normal with variance 1.01, so a pre-activation is too: the quantile sets the share of active latents.
    level = 1.01**0.5 * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - size.l0 / s)).item()
    b_enc = torch.full((s,), -level, device=device)
    weights = pk.prepare(W_enc, b_enc, b_dec)
    z = pk.encode(x, weights)
    labels = torch.arange(size.images, device=device) % CLASSES
    rank = torch.stack([torch.randperm(s, generator=g) for _ in range(CLASSES)]).to(device, torch.int32)
    return Inputs(
        size=size,
        x=x,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=F.normalize(normal(s, d), dim=1),
        b_dec=b_dec,
        weights=weights,
        z=z,
        rank=rank,
        labels=labels,
        class_ids=labels.repeat_interleave(size.tokens),
    )


def sweep_ks(latents: int) -> list[int]:
    """The paper's ks that fit, and S."""
    return [k for k in KS if k < latents] + [latents]

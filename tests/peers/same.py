"""What a library makes of its file is what we make of it: latents, which of them are active, and the reconstruction."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchsae import SAEConfig, SparseAutoencoder, load_sae

D, S, N, K = 16, 40, 64, 5
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def tokens() -> Tensor:
    """``[N, D]``, with a mean and a deviation that are not 0 and 1."""
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1)) * 1.5 + 0.5


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Give a module weights of no special form: biases that are not 0, rows of a decoder that are not of length 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def loaded(path: Path, **answers: Any) -> SparseAutoencoder:
    """The SAE of a file that leaves nothing open with these answers: a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return load_sae(path, **answers)


def require_same(sae: SparseAutoencoder, x: Tensor, latents: Tensor, reconstruction: Tensor) -> None:
    """Hold a SAE of ours against what a library answers for the tokens ``x``."""
    active = latents != 0
    assert 0.02 < active.float().mean() < 0.98, "latents that are all active, or none, tell nothing"
    with torch.no_grad():
        z, y = sae.encode(x), sae(x)
    torch.testing.assert_close(z.to_dense(), latents.detach().float(), **CLOSE)
    assert torch.equal(z.to_dense() != 0, active)
    torch.testing.assert_close(y, reconstruction.detach().float(), **CLOSE)


def ours(activation: str, d_sae: int = S, shared: bool = False, **settings: Any) -> SparseAutoencoder:
    """A SAE of ours of no special form; with "jumprelu" a threshold for each latent, or one that is shared by all."""
    k = K if activation.startswith("topk") else None
    sae = SparseAutoencoder(SAEConfig(D, d_sae, activation, k, **settings))
    randomise(sae)
    if activation == "jumprelu":
        sae.threshold.copy_(torch.full((d_sae,), 0.5) if shared else torch.linspace(0, 2, d_sae))
    return sae

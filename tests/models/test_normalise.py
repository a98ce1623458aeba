"""What a SAE does to each token: encoded as the formula says, carried by the latents, undone by every decode."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import patchsae_kernels as pk
from patchsae import load_sae
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

D, S, N = 5, 12, 8


def make(normalise: str, **changes: object) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    config = SAEConfig(D, S, normalise=normalise, **changes)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in config.shapes.items()}
    return SparseAutoencoder.from_tensors(config, tensors).requires_grad_(False)


def tokens() -> torch.Tensor:
    return 3 * torch.randn(N, D, generator=torch.Generator().manual_seed(1)) + 2


def normalised(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    zero, one = np.zeros((N, 1)), np.ones((N, 1))
    if kind == "layer_norm":
        mean, deviation = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        return (x - mean) / (deviation + 1e-5), mean, deviation
    if kind == "norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / math.sqrt(D)
        return x / scale, zero, scale
    scale = np.linalg.norm(x, axis=1, keepdims=True) + 1e-8
    return x / scale, zero, scale * one


@pytest.mark.parametrize("kind", ["layer_norm", "norm_rescale", "unit_norm"])
def test_a_normalising_sae_reconstructs_the_tokens_as_they_came(kind: str, tmp_path: Path) -> None:
    made = make(kind)
    made.save(tmp_path)
    sae, x = load_sae(tmp_path, "cpu").requires_grad_(False), tokens()
    w = {name: tensor.double().numpy() for name, tensor in sae.state_dict().items()}
    u, mean, scale = normalised(x.double().numpy(), kind)
    latents = np.maximum((u - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    y = (latents @ w["W_dec"] + w["b_dec"]) * scale + mean
    z = sae.encode(x)
    np.testing.assert_allclose(z.to_dense().numpy(), latents, atol=2e-5)
    np.testing.assert_allclose(sae.decode(z).numpy(), y, atol=1e-4)
    rank, keep = torch.arange(S, dtype=torch.int32), torch.arange(S) < 4
    on, off = sae.decode_sweep(z, rank, [4])
    torch.testing.assert_close(on[0], sae.decode_masked(z, keep))
    torch.testing.assert_close(off[0], sae.decode_masked(z, ~keep))
    bare = (w["b_dec"] * scale + mean).astype(np.float32)
    torch.testing.assert_close(sae.decode(z.scale(range(S), 0.0)), torch.from_numpy(bare), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["layer_norm", "norm_rescale"])
def test_mean_and_scale_follow_their_tokens(kind: str, tmp_path: Path) -> None:
    sae = make(kind)
    z = sae.encode(tokens())
    y = sae.decode(z)
    order = torch.tensor([3, 0, 7, 3])
    torch.testing.assert_close(sae.decode(z.select_rows(order)), y[order])
    parts = z.reshape_tokens(2, N // 2)
    torch.testing.assert_close(sae.decode(pk.SparseLatents.cat(parts)), y)
    z.save(tmp_path / "z.safetensors")
    torch.testing.assert_close(sae.decode(pk.SparseLatents.load(tmp_path / "z.safetensors")), y)
    torch.testing.assert_close(sae.decode(z.set([1], 2.0).add([1], -2.0)), sae.decode(z.scale([1], 0.0)))
    with pytest.raises(ValueError, match="parts have a token_(mean|scale); expected all or none"):
        pk.SparseLatents.cat([z, make("none").encode(tokens())])


def test_an_offset_is_added_to_the_tokens_and_not_to_what_is_normalised() -> None:
    sae = make("layer_norm")
    z = sae.encode(tokens())
    torch.testing.assert_close(sae.decode(z, offset=0.5), sae.decode(z) + 0.5)
    on, _ = sae.decode_sweep(z, torch.arange(S, dtype=torch.int32), [S], offset=0.5)
    torch.testing.assert_close(on[0], sae.decode(z) + 0.5)


def test_a_soft_cap_bounds_latents() -> None:
    free, capped = make("none"), make("none", soft_cap=0.7)
    z, bounded = free.encode(tokens()), capped.encode(tokens())
    torch.testing.assert_close(bounded.to_dense(), 0.7 * torch.tanh(z.to_dense() / 0.7))


def test_pre_activations_are_normalised_over_the_latents() -> None:
    """Against torch's own layer norm over S, at another gain and bias for each latent."""
    g = torch.Generator().manual_seed(2)
    W, b, D_, gain, beta = (torch.randn(s, generator=g).double() for s in [(D, S), (S,), (S, D), (S,), (S,)])
    joined = torch.cat([W - W.mean(1, keepdim=True), (b - b.mean())[None]])  # [D + 1, S]
    covariance = joined @ joined.T / S
    covariance[-1, -1] += 1e-5
    values, vectors = torch.linalg.eigh(covariance)
    tensors = {
        "W_enc": joined[:-1] * gain,
        "scaled_bias": joined[-1] * gain,
        "b_enc": beta,
        "W_dec": D_,
        "b_dec": torch.zeros(D),
        "spread": values.clamp(min=0).sqrt()[:, None] * vectors.T,
    }
    sae = SparseAutoencoder.from_tensors(SAEConfig(D, S, normalise="latent_norm"), tensors)
    x = tokens()
    expected = torch.nn.functional.layer_norm(x.double() @ W + b, (S,), gain, beta, 1e-5).relu()
    z = sae.encode(x)
    torch.testing.assert_close(z.to_dense().detach().double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(z).detach().double(), expected @ D_, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cap", [0, -1.0, True, math.inf, 10**400, "2"])
def test_a_cap_that_bounds_nothing_is_refused(cap: object) -> None:
    with pytest.raises(ValueError, match="soft_cap=.*; expected a positive number, or None"):
        SAEConfig(D, S, soft_cap=cap)  # type: ignore[arg-type]

"""Normalisation against its definition, and the law of folding: raw input in, raw reconstruction out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.training.normalise import Normaliser


def stream(seed: int, tokens: int, width: int) -> torch.Tensor:
    """Float64 tokens with outlying dimensions, as those of a vision transformer."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(width, generator=generator, dtype=torch.float64).exp()
    return torch.randn(tokens, width, generator=generator, dtype=torch.float64) * spread + 3 * spread


def random_sae(seed: int, width: int, activation: str) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    config = SAEConfig(width, 3 * width, activation=activation, k=2 if activation == "topk" else None)
    sae = SparseAutoencoder(config).double()
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        if activation == "jumprelu":
            sae.threshold.abs_()
    return sae


@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(2, 30),
    width=st.integers(1, 8),
    kind=st.sampled_from(["none", "norm", "standardise"]),
    activation=st.sampled_from(["relu", "topk", "jumprelu"]),
)
def test_folded_takes_the_raw_stream(seed: int, tokens: int, width: int, kind: str, activation: str) -> None:
    x = stream(seed, tokens, width)
    normaliser = Normaliser.fit([x], kind)
    sae = random_sae(seed, width, activation)
    folded = normaliser.fold(sae)
    trained_on = normaliser.apply(x)
    z, raw = sae.encode(trained_on), folded.encode(x)
    torch.testing.assert_close(raw.to_dense(), z.to_dense(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        folded.decode(raw), sae.decode(z) / normaliser.scale + normaliser.shift, rtol=1e-9, atol=1e-9
    )


@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_what_it_makes_of_the_batches_it_was_fitted_on(seed: int, sizes: list[int]) -> None:
    batches = list(stream(seed, sum(sizes) + 2, 5).split([*sizes, 2]))
    raw = torch.cat(batches)
    assert Normaliser.fit(batches, "none").apply(raw) is raw
    scaled = Normaliser.fit(batches, "norm").apply(raw)
    assert scaled.norm(dim=1).mean().item() == pytest.approx(5**0.5, rel=1e-6)
    torch.testing.assert_close(scaled / scaled.norm(dim=1, keepdim=True), raw / raw.norm(dim=1, keepdim=True))
    standard = Normaliser.fit(batches, "standardise").apply(raw)
    zeros = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(standard.mean(dim=0), zeros, atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(dim=0, correction=0), zeros + 1, atol=1e-5, rtol=0)


def test_a_constant_dimension_keeps_its_scale() -> None:
    x = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    x[..., 1] = 0.1
    x[..., 2] = 0
    fitted = Normaliser.fit([x], "standardise")
    assert fitted.scale[1:3].tolist() == [1, 1]
    assert fitted.apply(x)[..., 1:3].abs().max() < 1e-6


def test_folding_leaves_the_trained_one_alone() -> None:
    sae = random_sae(0, 4, "relu")
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    Normaliser.fit([stream(0, 9, 4)], "standardise").fold(sae)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


def test_wrong_inputs_name_the_argument() -> None:
    with pytest.raises(ValueError, match="kind is 'layer'"):
        Normaliser.fit([torch.zeros(2, 3)], "layer")
    with pytest.raises(ValueError, match="batches is empty"):
        Normaliser.fit([], "norm")

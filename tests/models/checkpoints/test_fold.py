"""Folding: the SAE of ours answers as the formula that was folded, in float64 to float32's rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patchsae.models.checkpoints import fold
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig

D, S, N = 3, 5, 64


def random(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def answer(tensors: dict[str, Tensor], x: Tensor, activation: str = "relu") -> tuple[Tensor, Tensor]:
    sae = SparseAutoencoder.from_tensors(SAEConfig(D, S, activation), tensors).requires_grad_(False)
    z = sae.encode(x)
    return z.to_dense().double(), sae.decode(z).double()


@given(seed=st.integers(0, 2**16), subtracts=st.booleans(), per_dimension=st.booleans())
def test_an_affine_input_and_both_meanings_of_b_dec_fold(seed: int, subtracts: bool, per_dimension: bool) -> None:
    x, W_enc, b_enc, W_dec, b_dec, mean, std = random(seed, (N, D), (D, S), (S,), (S, D), (D,), (D,), (D,))
    std = std.exp().clamp(0.2, 5)
    shift, scale = (mean, std) if per_dimension else (float(mean[0]), float(std[0]))
    folded = fold.fold(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, subtracts=subtracts, mean=shift, std=scale)
    wide = [t.double() for t in (x, W_enc, b_enc, W_dec, b_dec)]
    u = (wide[0] - shift) / scale
    latents = ((u - subtracts * wide[4]) @ wide[1] + wide[2]).relu()
    z, y = answer(folded, x)
    torch.testing.assert_close(z, latents, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(y, (latents @ wide[3] + wide[4]) * scale + shift, atol=5e-4, rtol=1e-5)


def test_what_needs_no_fold_keeps_its_bits() -> None:
    W_enc, b_enc, W_dec, b_dec = random(0, (D, S), (S,), (S, D), (D,))
    given = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    folded = fold.fold(**given, subtracts=True)
    assert all(torch.equal(folded[name], given[name]) for name in given)


@given(seed=st.integers(0, 2**16))
def test_a_gated_sae_is_a_jumprelu_one(seed: int) -> None:
    x, W, r_mag, b_mag, b_gate, W_dec, b_dec = random(seed, (N, D), (D, S), (S,), (S,), (S,), (S, D), (D,))
    W_enc, b_enc, threshold = fold.gated(W_enc=W, r_mag=r_mag, b_mag=b_mag, b_gate=b_gate)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    u = (x.double() - b_dec.double()) @ W.double()
    gate, magnitude = u + b_gate.double(), u * r_mag.double().exp() + b_mag.double()
    clear = (gate.abs() > 1e-4) & (magnitude.abs() > 1e-4)  # float32 rounds what lies closer either way
    z, _ = answer(tensors, x, "jumprelu")
    torch.testing.assert_close(z[clear], ((gate > 0) * magnitude.relu())[clear], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.25, 1e-45, 1.0, 3.4e38])
def test_at_least_is_above_the_number_below(threshold: float) -> None:
    theta = torch.tensor(threshold)
    around = torch.stack([torch.nextafter(theta, torch.tensor(-1.0)), theta, torch.nextafter(theta, theta * 2)])
    assert torch.equal(around > fold.at_least(theta), around >= theta)


def test_no_threshold_is_below_zero() -> None:
    assert torch.equal(fold.at_least(torch.tensor([-1.0, 0.0])), torch.zeros(2))

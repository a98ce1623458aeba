"""Quality: the sums over a stream are the formulas on all tokens at once."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.evaluate.quality import Quality, QualityCounts

B, T, D, S = 9, 5, 6, 11


def batch(images: int = B, seed: int = 0) -> tuple[Tensor, pk.SparseLatents, Tensor]:
    """Residual far from 0, latents of which one never fires and one always does, reconstruction near the residual."""
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randn(images, T, D, generator=generator) + torch.arange(D)
    dense = torch.randn(images * T, S, generator=generator).relu()
    dense[:, 3], dense[:, 4] = 0, 1
    y = residual + 0.3 * torch.randn(images, T, D, generator=generator)
    return residual, pk.SparseLatents.from_dense(dense), y


def counted(*pieces: tuple[Tensor, pk.SparseLatents, Tensor]) -> QualityCounts:
    counts = QualityCounts(S, T, D)
    for piece in pieces:
        counts.update(*piece)
    return counts


def part(data: tuple[Tensor, pk.SparseLatents, Tensor], images: slice) -> tuple[Tensor, pk.SparseLatents, Tensor]:
    residual, latents, y = data
    rows = torch.arange(B * T).reshape(B, T)[images].flatten()
    return residual[images], latents.select_rows(rows), y[images]


def assert_same(found: Quality, expected: Quality) -> None:
    for group in ("all", "cls", "patches"):
        a, b = (dataclasses.asdict(getattr(quality, group)) for quality in (found, expected))
        assert a == pytest.approx(b, rel=1e-12)
    assert torch.equal(found.l0, expected.l0)
    assert torch.equal(found.fired, expected.fired)


def test_the_figures_are_the_formulas() -> None:
    residual, latents, y = batch()
    quality = counted((residual, latents, y)).finalize()
    dense = latents.to_dense().double().reshape(B, T, S)
    groups = {"all": slice(None), "cls": slice(0, 1), "patches": slice(1, None)}
    for name, tokens in groups.items():
        x, r, h = (t[:, tokens].flatten(0, 1).double() for t in (residual, y, dense))
        found = getattr(quality, name)
        error = (r - x).square().sum(1)
        assert found.tokens == len(x)
        share = error.sum() / (x - x.mean(0)).square().sum()
        expected = {
            "explained_variance": 1 - share,
            "nmse": error.sum() / x.square().sum(),
            "nmse_centred": share,
            "mse": ((r - x).square() / x.norm(dim=1, keepdim=True)).mean(),
            "squared_error": error.mean(),
            "cosine": ((r * x).sum(1) / r.norm(dim=1) / x.norm(dim=1)).mean(),
            "l1": h.sum(1).mean(),
            "l0": (h > 0).double().sum(1).mean(),
        }
        for key, value in expected.items():
            assert getattr(found, key) == pytest.approx(float(value), rel=1e-10), (name, key)
    active = (dense > 0).sum(2)
    assert torch.equal(quality.l0[0], torch.bincount(active[:, 0], minlength=S + 1))
    assert torch.equal(quality.l0[1], torch.bincount(active[:, 1:].flatten(), minlength=S + 1))
    assert torch.equal(quality.fired, (dense > 0).sum((0, 1)))


def test_the_mean_explains_nothing_and_the_truth_everything() -> None:
    residual, latents, _ = batch()
    mean = residual.flatten(0, 1).double().mean(0).float().expand_as(residual)
    assert counted((residual, latents, mean)).finalize().all.explained_variance == pytest.approx(0, abs=1e-6)
    exact = counted((residual, latents, residual)).finalize().all
    assert (exact.explained_variance, exact.nmse, exact.mse) == (1, 0, 0)
    assert exact.cosine == pytest.approx(1)


def test_dead_and_dense_latents() -> None:
    quality = counted(batch()).finalize()
    assert quality.dead == 1
    assert quality.dense(0.99) == 1
    assert quality.dense(0.0) == S - 1


def test_quantiles_of_l0_are_those_of_the_sorted_tokens() -> None:
    data = batch()
    active = data[1].counts().sort().values
    quality = counted(data).finalize()
    for share in (0.05, 0.31, 0.5, 0.999, 1.0):
        assert quality.l0_quantile(share) == int(active[math.ceil(share * B * T) - 1])


def test_merging_and_batches_make_no_difference() -> None:
    data = batch()
    whole = counted(data).finalize()
    pieces = [part(data, slice(0, 2)), part(data, slice(2, 3)), part(data, slice(3, None))]
    assert_same(counted(*pieces).finalize(), whole)
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = counted()
        for place in order:
            merged.merge(counted(pieces[place]))
        assert_same(merged.finalize(), whole)


def test_a_saved_state_goes_on_to_the_same_bits() -> None:
    data = batch()
    first, second = part(data, slice(0, 4)), part(data, slice(4, None))
    resumed = counted()
    resumed.load_state_dict({key: value.clone() for key, value in counted(first).state_dict().items()})
    resumed.update(*second)
    unbroken = counted(first, second).state_dict()
    for key, value in resumed.state_dict().items():
        assert value.numpy().tobytes() == unbroken[key].numpy().tobytes(), key


def test_no_tokens_have_no_figures() -> None:
    nothing = counted().finalize().all
    assert nothing.tokens == 0
    assert all(math.isnan(getattr(nothing, name)) for name in ("explained_variance", "nmse", "mse", "l0"))

"""What is exported encodes and decodes as the variant does in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patchsae import load_sae
from patchsae.models.sae import SparseAutoencoder
from patchsae.parallel.base import Alone

from .cases import VARIANTS, Case, make_case, variant_of
from .dense import ENCODERS, Dense, Recipe, dense_loss, pre_activations

METADATA = {"model": "some-tower", "layer": -2}


def exported(recipe: Recipe, case: Case, threshold: float | None = None) -> SparseAutoencoder:
    variant = variant_of(recipe)
    buffers = variant.buffers(case.params)
    if threshold is not None:
        buffers["threshold"].fill_(threshold)
    return variant.export(case.params, buffers, METADATA)


def dense_of(recipe: Recipe, case: Case) -> Dense:
    return dense_loss(case.x, {name: p.double() for name, p in case.params.items()}, None, recipe)


@given(
    name=st.sampled_from(["relu", "topk", "jumprelu", "gated"]),
    seed=st.integers(0, 10_000),
    k=st.sampled_from([1, 4, 16]),
)
def test_inference_is_the_training_forward(name: str, seed: int, k: int) -> None:
    recipe = Recipe(name, k=k)
    case = make_case(variant_of(recipe), seed, dtype=torch.float32)
    sae, expected = exported(recipe, case), dense_of(recipe, case)
    z = sae.encode(case.x)
    latents = ENCODERS[name](case.x.double().flatten(0, 1), {n: p.double() for n, p in case.params.items()}, recipe)
    torch.testing.assert_close(z.to_dense().double(), latents.latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(z).double(), expected.y, rtol=1e-4, atol=1e-4)
    assert sae.config.metadata == METADATA


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_inference_of_batchtopk_is_what_lies_above_its_threshold(name: str) -> None:
    recipe = Recipe(name)
    case = make_case(variant_of(recipe), 2, dtype=torch.float32)
    pre = pre_activations(case.x.flatten(0, 1), case.params)
    smallest = pre[dense_of(recipe, case).active].min()
    z = exported(recipe, case, threshold=smallest.item() - 1e-5).encode(case.x).to_dense()
    torch.testing.assert_close(z.double(), dense_kept(recipe, case), rtol=1e-5, atol=1e-6)
    higher = exported(recipe, case, threshold=1.0).encode(case.x).to_dense()
    torch.testing.assert_close(higher, pre * (pre > 1), rtol=1e-5, atol=1e-6)


def dense_kept(recipe: Recipe, case: Case) -> Tensor:
    params = {name: p.double() for name, p in case.params.items()}
    return ENCODERS[recipe.variant](case.x.double().flatten(0, 1), params, recipe).latents


def test_the_threshold_is_a_running_average_of_the_smallest_kept_latent() -> None:
    recipe = Recipe("batchtopk")
    variant = variant_of(recipe)
    cases = [make_case(variant, seed) for seed in range(4)]
    buffers = variant.buffers(cases[0].params)
    assert buffers["threshold"].item() == 0
    expected = None
    for case in cases:
        params = cases[0].params
        dense = dense_loss(case.x, params, None, recipe)
        smallest = pre_activations(case.x.flatten(0, 1), params)[dense.active].min().item()
        expected = smallest if expected is None else 0.99 * expected + 0.01 * smallest
        variant.step(case.x, params, buffers, None, Alone())
        assert buffers["threshold"].item() == pytest.approx(expected, rel=1e-12)
    silent = {**cases[0].params, "b_enc": torch.full_like(cases[0].params["b_enc"], -100.0)}
    variant.step(cases[0].x, silent, buffers, None, Alone())
    assert buffers["threshold"].item() == pytest.approx(expected, rel=1e-12), "a batch without latents says nothing"


@pytest.mark.parametrize("name", VARIANTS)
def test_exports_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    recipe = Recipe(name)
    case = make_case(variant_of(recipe), 4, dtype=torch.float32)
    sae = exported(recipe, case, threshold=0.3 if name in ("batchtopk", "matryoshka") else None)
    sae.save(tmp_path)
    loaded = load_sae(tmp_path, "cpu")
    assert torch.equal(loaded.encode(case.x).to_dense(), sae.encode(case.x).to_dense())
    assert sae.W_enc.stride() == (1, 6)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_export_is_a_copy(name: str) -> None:
    recipe = Recipe(name)
    case = make_case(variant_of(recipe), 4, dtype=torch.float32)
    sae = exported(recipe, case)
    before = sae(case.x)
    for parameter in case.params.values():
        parameter.detach().zero_()
    assert torch.equal(sae(case.x), before)

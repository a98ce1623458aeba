"""Every variant's terms and gradients against the dense float64 formula, with dead latents present."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from patchsae.parallel.base import Alone
from patchsae.training.variants import Variant

from .cases import SPARSE, VARIANTS, Case, make_case, variant_of
from .dense import Recipe, dense_gradients

TERMS = ("total", "mse", "l1", "ghost", "l0", "squared_error")
RECIPES = st.builds(
    Recipe,
    variant=st.sampled_from(VARIANTS),
    published=st.booleans(),
    cls_weight=st.sampled_from([0.0, 1.0, 2.5]),
    dead_term=st.sampled_from(["none", "ghost", "auxk"]),
    k=st.integers(1, 9),
    auxk=st.integers(1, 20),
    bandwidth=st.sampled_from([0.1, 0.4, 2.0]),
)


def check(variant: Variant, case: Case, recipe: Recipe, terms_tolerance: float, grads_tolerance: float) -> None:
    expected, expected_grads = dense_gradients(case.x, case.params, case.dead, recipe)
    buffers = variant.buffers(case.params)
    terms, grads = variant.step(case.x, case.params, buffers, case.dead, Alone())
    assert torch.equal(terms.fired, expected.active.any(0))
    for name in TERMS:
        value, wanted = getattr(terms, name).item(), getattr(expected, name).item()
        assert value == pytest.approx(wanted, rel=terms_tolerance, abs=terms_tolerance), name
    assert grads.keys() == case.params.keys()
    for name, wanted in expected_grads.items():
        tolerance = grads_tolerance * max(wanted.abs().max().item(), 1e-3)
        torch.testing.assert_close(grads[name].double(), wanted, rtol=0, atol=tolerance, msg=name)
        assert grads[name].stride() == case.params[name].stride()


BIASES = st.sampled_from([0.0, SPARSE])


@given(
    recipe=RECIPES,
    seed=st.integers(0, 10_000),
    flat=st.booleans(),
    dead_share=st.sampled_from([0.0, 0.4, 1.0]),
    bias=BIASES,
)
def test_float64_equals_the_dense_formula(
    recipe: Recipe, seed: int, flat: bool, dead_share: float, bias: float
) -> None:
    variant = variant_of(recipe)
    check(variant, make_case(variant, seed, flat=flat, dead_share=dead_share, bias=bias), recipe, 1e-9, 1e-9)


@given(recipe=RECIPES, seed=st.integers(0, 10_000), bias=BIASES)
def test_native_float32_equals_the_dense_formula(recipe: Recipe, seed: int, bias: float) -> None:
    variant = variant_of(recipe)
    case = make_case(variant, seed, bias=bias, dtype=torch.float32)
    buffers = variant.buffers(case.params)
    fired = variant.step(case.x, case.params, buffers, case.dead, Alone())[0]
    exact = dense_gradients(case.x, case.params, case.dead, recipe)[0]
    assume(torch.equal(fired.fired, exact.active.any(0)) and fired.l0.item() == pytest.approx(exact.l0.item()))
    check(variant, case, recipe, 1e-4, 1e-4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dead_term", ["none", "ghost", "auxk"])
@pytest.mark.parametrize("bias", [0.0, SPARSE])
def test_each_variant_in_many_small_chunks(name: str, dead_term: str, bias: float) -> None:
    recipe = Recipe(name, published=True, cls_weight=2.0, dead_term=dead_term)
    variant = replace(variant_of(recipe), budget=1500)
    case = make_case(variant, 7, images=5, bias=bias)
    assert case.dead.any()
    check(variant, case, recipe, 1e-9, 1e-9)


@pytest.mark.parametrize("bias", [0.0, SPARSE])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_not_a_batch_is_refused(name: str, bias: float) -> None:
    variant = variant_of(Recipe(name, published=True))
    case = make_case(variant, 0, bias=bias)
    with pytest.raises(ValueError, match="x has shape"):
        variant.step(case.x[0, 0], case.params, variant.buffers(case.params), None, Alone())
    case.x[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        variant.step(case.x, case.params, variant.buffers(case.params), None, Alone())

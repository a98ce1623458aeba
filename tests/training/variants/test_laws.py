"""What each variant and each dead-latent term must do, whatever the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

import patchsae_kernels as pk
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.parallel.base import Alone
from patchsae.training.config import STRENGTH, TrainConfig, VariantName
from patchsae.training.variants import AuxK, ErrorScale, Ghost, ReLU, TopK, make

from .cases import VARIANTS, Case, make_case, variant_of
from .dense import Recipe


def test_every_name_of_a_variant_has_a_class_of_its_own_an_option_of_strength_and_these_laws() -> None:
    names = get_args(VariantName)
    assert len({type(make(TrainConfig(variant=name))) for name in names}) == len(names)
    assert set(STRENGTH) == set(names) == set(VARIANTS)


@pytest.mark.parametrize("dead_term", ["ghost", "resample", "none"])
def test_released_relu_is_sae_step_bit_for_bit(dead_term: str) -> None:
    recipe = Recipe("relu", dead_term=dead_term, cls_weight=2.0)
    case = make_case(variant_of(recipe), 0, dtype=torch.float32)
    terms, grads = variant_of(recipe).step(case.x, case.params, {}, case.dead, Alone())
    theirs, gradients = pk.sae_step(
        case.x, case.params, l1=recipe.l1, dead=case.dead, ghost=dead_term == "ghost", cls_weight=2.0
    )
    assert all(torch.equal(a, b) for a, b in zip(terms, theirs, strict=True))
    assert all(torch.equal(grads[name], gradients[name]) for name in gradients)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_start_has_the_parameters_of_the_sae_and_its_own(name: str) -> None:
    sae = SparseAutoencoder(SAEConfig(6, 16))
    params = variant_of(Recipe(name)).parameters(sae)
    for parameter in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert params[parameter] is getattr(sae, parameter)
    own = {name: tensor for name, tensor in params.items() if not hasattr(sae, name)}
    assert {"jumprelu": {"log_threshold"}, "gated": {"r_mag", "b_mag"}}.get(name, set()) == own.keys()
    assert all(tensor.shape == (16,) for tensor in own.values())
    if name == "jumprelu":
        torch.testing.assert_close(own["log_threshold"].exp(), torch.full((16,), 1e-3))


def test_a_gated_sae_begins_as_a_relu_sae() -> None:
    recipe = Recipe("gated", published=True)
    sae = SparseAutoencoder(SAEConfig(6, 16))
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    exported = variant_of(recipe).export(variant_of(recipe).parameters(sae), {}, {})
    torch.testing.assert_close(exported.encode(x).to_dense(), sae.encode(x).to_dense())


def test_matryoshka_prefixes_are_autoencoders_of_their_own() -> None:
    """The loss is the sum of the losses that the first latents alone have, with the others taken out."""
    recipe = Recipe("matryoshka", prefixes=(0.25, 0.5, 1.0))
    case = make_case(variant_of(recipe), 1)
    terms, grads = variant_of(recipe).step(
        case.x, case.params, {"threshold": torch.tensor(1.0).double()}, None, Alone()
    )
    total, dec = 0.0, torch.zeros_like(grads["W_dec"])
    for end in (4, 8, 16):
        W_dec = case.params["W_dec"].detach().clone()
        W_dec[end:] = 0
        plain = variant_of(replace(recipe, variant="batchtopk"))
        part, gradients = plain.step(case.x, {**case.params, "W_dec": W_dec}, plain.buffers(case.params), None, Alone())
        total += part.mse.item()
        dec[:end] += gradients["W_dec"][:end]
    assert terms.mse.item() == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(grads["W_dec"], dec)


def test_matryoshka_with_one_prefix_is_batchtopk() -> None:
    recipe = Recipe("matryoshka", prefixes=(1.0,), dead_term="auxk")
    case = make_case(variant_of(recipe), 1)
    buffers = {"threshold": torch.tensor(0.5).double()}
    terms, grads = variant_of(recipe).step(case.x, case.params, buffers, case.dead, Alone())
    plain = variant_of(replace(recipe, variant="batchtopk"))
    theirs, gradients = plain.step(case.x, case.params, buffers, case.dead, Alone())
    torch.testing.assert_close(terms.total, theirs.total)
    for name in gradients:
        torch.testing.assert_close(grads[name], gradients[name])


def gradient_norms(recipe: Recipe, case: Case, dead: torch.Tensor) -> torch.Tensor:
    """Of latent 5: encoder column, bias, dictionary row."""
    variant = variant_of(recipe)
    terms, grads = variant.step(case.x, case.params, variant.buffers(case.params), dead, Alone())
    assert not terms.fired[5]
    return torch.stack([grads["W_enc"][:, 5].norm(), grads["b_enc"][5].abs(), grads["W_dec"][5].norm()])


@pytest.mark.parametrize("name", VARIANTS)
def test_ghost_gradients_reach_encoder_and_decoder_of_a_silent_latent(name: str) -> None:
    recipe = Recipe(name, dead_term="ghost")
    case = make_case(variant_of(recipe), 3)
    case.params["b_enc"].detach()[5] = -8.0
    dead = torch.arange(16) == 5
    assert gradient_norms(replace(recipe, dead_term="none"), case, dead).max() == 0
    assert gradient_norms(recipe, case, dead).min() > 1e-6


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "jumprelu"])
def test_auxk_reaches_encoder_and_decoder_of_a_latent_that_is_never_chosen(name: str) -> None:
    recipe = Recipe(name, dead_term="auxk")
    case = make_case(variant_of(recipe), 3)
    case.params["W_enc"].detach()[:, 5] *= 1e-3
    case.params["b_enc"].detach()[5] = 1e-2
    if name == "jumprelu":
        case.params["log_threshold"][5] = 1.0
    dead = torch.arange(16) == 5
    assert gradient_norms(replace(recipe, dead_term="none"), case, dead).max() == 0
    assert gradient_norms(recipe, case, dead).min() > 1e-6


@pytest.mark.parametrize("name", VARIANTS)
def test_a_few_optimiser_steps_lower_the_loss_and_move_every_parameter(name: str) -> None:
    variant = variant_of(Recipe(name, published=True))
    case = make_case(variant, 0, dtype=torch.float32)
    buffers, adam = variant.buffers(case.params), pk.adam_init(case.params)
    before = {key: p.detach().clone() for key, p in case.params.items()}
    losses = []
    for _ in range(30):
        terms, grads = variant.step(case.x, case.params, buffers, None, Alone())
        pk.adam_step(case.params, grads, adam, lr=0.01)
        losses.append(terms.total.item())
    assert losses[-1] < 0.8 * losses[0]
    for key, p in case.params.items():
        assert (p.detach() - before[key]).abs().max() > 0.01, key
    torch.testing.assert_close(case.params["W_dec"].detach().norm(dim=1), torch.ones(16))


@pytest.mark.parametrize("name", VARIANTS)
def test_no_tokens_have_no_loss_and_no_gradient(name: str) -> None:
    variant = variant_of(Recipe(name, published=True, dead_term="auxk"))
    case = make_case(variant, 0, images=0)
    terms, grads = variant.step(case.x, case.params, variant.buffers(case.params), case.dead, Alone())
    assert terms.total == 0
    assert not terms.fired.any()
    assert all(grad.shape == case.params[key].shape and not grad.any() for key, grad in grads.items())


@pytest.mark.parametrize("term", [Ghost(), AuxK(k=2, coefficient=0.5), None])
def test_step_changes_neither_parameters_nor_moments_of_autograd(term: Ghost | AuxK | None) -> None:
    variant = ReLU(ErrorScale(released=False), term, l1=0.1)
    case = make_case(variant, 0)
    before = {name: p.detach().clone() for name, p in case.params.items()}
    variant.step(case.x, case.params, {}, case.dead, Alone())
    assert all(torch.equal(case.params[name], value) for name, value in before.items())
    assert all(p.grad is None for p in case.params.values())


def test_more_latents_than_there_are_is_all_of_them() -> None:
    few = TopK(ErrorScale(), None, k=100)
    case = make_case(few, 0)
    assert few.step(case.x, case.params, {}, None, Alone())[0].l0 < 16
    assert few.export(case.params, {}, {}).config.k == 16


@pytest.mark.parametrize("z", [0.8, 1.2, 0.7, 1.3])
@pytest.mark.parametrize("silent", [0, 15])
def test_a_jumprelu_threshold_hears_of_both_sides_of_its_band(z: float, silent: int) -> None:
    """One latent at z of threshold 1 and bandwidth 0.5, on sparse latents (15 silent ones beside it) and on dense ones.

    Its l0 has the pseudo-derivative -1 / 0.5 in theta, its value -theta / 0.5 with the slope of the squared error.
    """
    variant = variant_of(Recipe("jumprelu", published=True, l0=0.3, bandwidth=0.5))
    x, n = torch.tensor([[z, 0.0]]).double(), 1 + silent
    params = {
        "W_enc": torch.tensor([[1.0], [0.0]]).double().expand(2, n).clone(),
        "b_enc": torch.tensor([0.0] + [-9.0] * silent).double(),
        "W_dec": torch.tensor([[1.0, 0.0]]).double().expand(n, 2).clone(),
        "b_dec": torch.tensor([0.0, 0.0]).double(),
        "log_threshold": torch.zeros(n).double(),
    }
    terms, grads = variant.step(x, params, {}, None, Alone())
    slope = 2 * (z * (z > 1) - z)
    in_band = abs(z - 1) < 0.25
    assert grads["log_threshold"][0].item() == pytest.approx(-(slope + 0.3) / 0.5 if in_band else 0.0)
    assert terms.l0 == (z > 1)
    assert not terms.fired[1:].any()
    assert not grads["log_threshold"][1:].any()


def test_adam_moves_further_parameters_as_torchs_does() -> None:
    generator = torch.Generator().manual_seed(0)
    params = make_case(variant_of(Recipe("gated")), 0).params
    theirs = params["r_mag"].clone().requires_grad_()
    optimizer, state = torch.optim.Adam([theirs], lr=0.01), pk.adam_init(params)
    for _ in range(5):
        grads = {name: torch.randn(p.shape, generator=generator).double() for name, p in params.items()}
        pk.adam_step(params, grads, state, lr=0.01)
        theirs.grad = grads["r_mag"]
        optimizer.step()
    torch.testing.assert_close(params["r_mag"], theirs.detach(), rtol=1e-12, atol=0)

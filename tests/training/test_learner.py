"""One learner: micro-batches against one batch, dead counts, clipping, resampling, and what is not finite."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.activations import TokenBatch
from patchsae.parallel.base import Alone
from patchsae.training.config import TrainConfig
from patchsae.training.learner import Learner, NonFiniteLoss

from ..malice import little_memory

D, IMAGES, TOKENS = 8, 6, 3
SMALL: dict[str, Any] = {
    "expansion": 8,
    "batch_size": IMAGES,
    "total_images": 60,
    "warm_up_steps": 0,
    "l1": 0.05,
    "k": 4,
    "l0": 0.02,
    "bandwidth": 0.1,
    "auxk": 8,
    "dead_window": 1,
    "prefixes": (0.125, 0.5, 1.0),
    "start": "mean",
}
LOSSES: dict[str, dict[str, Any]] = {
    "relu": {"cls_weight": 2.0},
    "published": {"loss": "published", "dead_term": "none"},
    "topk": {"variant": "topk", "dead_term": "auxk"},
    "jumprelu": {"variant": "jumprelu", "dead_term": "auxk"},
    "gated": {"variant": "gated", "dead_term": "auxk"},
}
"""A batchtopk selects in each micro-batch by itself: there it is another loss."""


def learner_of(**changes: Any) -> Learner:
    learner = Learner(TrainConfig(**SMALL | changes), D, "cpu", Alone(), {})
    learner.start([batch(99)])
    return learner


def batch(step: int) -> TokenBatch:
    """Every image along a few directions of its own, so that its latents are not those of the others."""
    generator = torch.Generator().manual_seed(step)
    directions = torch.randn(IMAGES, 1, D, generator=generator) * 4
    tokens = directions + 0.3 * torch.randn(IMAGES, TOKENS, D, generator=generator)
    return TokenBatch(tokens, [f"{step}.{i}" for i in range(IMAGES)], IMAGES, (step + 1) * IMAGES)


def snapshot(learner: Learner) -> dict[str, Tensor]:
    state = learner.state
    return copy.deepcopy({**state.params, **state.buffers, "dead": state.dead.since_fired, **state.adam.exp_avg})


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_are_one_batch(loss: str, parts: int) -> None:
    """Adam's first moment after one step is a tenth of the gradient, without the division by its size."""
    whole, cut = (learner_of(**LOSSES[loss], accumulate=m, lr=1e-6) for m in (1, parts))
    with torch.no_grad():
        for learner in (whole, cut):
            learner.state.params["b_enc"][::2] -= 8  # these never fire
    dead = 0
    for step in range(4):
        expected, found = whole.step(batch(step)), cut.step(batch(step))
        dead += int(whole.state.dead.mask().sum())
        assert torch.equal(found.fired, expected.fired)
        for name in ("total", "mse", "l1", "ghost", "l0", "squared_error"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-7)
        for name, moment in whole.state.adam.exp_avg.items():
            distance = (cut.state.adam.exp_avg[name] - moment).norm()
            assert distance <= 2e-4 * moment.norm(), (step, name)  # the ghost term divides by what may be small
    assert dead > 0  # its term was at work
    assert torch.equal(cut.state.dead.since_fired, whole.state.dead.since_fired)
    assert (cut.state.step, cut.state.images, cut.state.position) == (4, 4 * IMAGES, 4 * IMAGES)


def test_a_latent_that_fires_in_any_micro_batch_has_fired_and_a_step_counts_once() -> None:
    learner = learner_of(accumulate=IMAGES, lr=1e-9, l1=1.0)
    params = learner.state.params
    with torch.no_grad():
        params["b_enc"] -= 4
    for step in range(3):
        tokens = batch(step).tokens
        z = pk.encode(tokens.reshape(-1, D), params["W_enc"], params["b_enc"], params["b_dec"]).to_dense()
        by_image = (z > 0).view(IMAGES, TOKENS, -1).any(1)
        before = learner.state.dead.since_fired.clone()
        learner.step(batch(step))
        fired = by_image.any(0)
        assert 0 < int(by_image[-1].sum()) < int(fired.sum()) < len(fired)
        assert torch.equal(learner.state.dead.since_fired, torch.where(fired, 0, before + 1))


@pytest.mark.parametrize("variant", ["relu", "gated"])
def test_clipping_scales_all_gradients_to_one_norm(variant: str) -> None:
    """Seen in Adam's first moment, but for the component along the rows that W_dec loses after it."""
    free, clipped = (learner_of(variant=variant, clip_gradient=limit) for limit in (None, 1e-3))
    for learner in (free, clipped):
        learner.step(batch(0))
    moments = free.state.adam.exp_avg, clipped.state.adam.exp_avg
    factors = [(moments[1][name].norm() / moments[0][name].norm()).item() for name in moments[0]]
    assert factors == pytest.approx([factors[0]] * len(factors), rel=1e-4)
    total = sum((moment / 0.1).square().sum() for moment in moments[1].values()).sqrt()
    assert 0.5e-3 < total <= 1e-3 * (1 + 1e-5)
    loose = learner_of(variant=variant, clip_gradient=1e9)
    loose.step(batch(0))
    assert all(torch.equal(loose.state.params[name], free.state.params[name]) for name in free.state.params)


def test_resampled_latents_are_not_dead_and_depend_on_the_seed_and_the_step_alone() -> None:
    changes = {"dead_term": "resample", "resample_every": 3, "l1": 5.0, "lr": 1e-3, "dead_window": 0}
    learners = [learner_of(**changes, seed=seed) for seed in (0, 0, 1)]
    for learner in learners:
        with torch.no_grad():
            learner.state.params["b_enc"] -= 6
        for step in range(2):
            learner.step(batch(step))
        dead = learner.state.dead.mask()
        before = learner.state.params["W_enc"].clone()
        learner.step(batch(2))
        moved = (learner.state.params["W_enc"] - before).norm(dim=0) > 0.1
        assert moved.any()
        assert not learner.state.dead.mask()[moved].any()
        assert dead[moved].float().mean() > 0.9  # a latent may have died in the last step itself
    one, two, other = (learner.state.params["W_dec"] for learner in learners)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("variant", ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_is_refused_with_the_state_as_it_was(variant: str, value: float) -> None:
    """1e30 is finite, its square is not."""
    learner = learner_of(variant=variant, dead_term="none", accumulate=2)
    learner.step(batch(0))
    before, counts = snapshot(learner), (learner.state.step, learner.state.images, learner.state.position)
    spoilt = batch(1)
    spoilt.tokens[4, 1, 2] = value
    with pytest.raises(NonFiniteLoss, match=r"step 2 has .* not finite") as error:
        learner.step(spoilt)
    assert error.value.ids == spoilt.ids
    after = snapshot(learner)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (learner.state.step, learner.state.images, learner.state.position) == counts
    learner.step(batch(1))
    assert learner.state.step == 2


@pytest.mark.parametrize("variant", ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_a_process_without_a_readable_image_adds_nothing(variant: str) -> None:
    learner = learner_of(variant=variant)
    state = learner.state
    nothing = batch(0).tokens[:0]
    terms, grads = learner.variant.step(nothing, state.params, state.buffers, torch.ones(64, dtype=torch.bool), Alone())
    assert not any(value.any() for value in terms)
    assert not any(grad.any() for grad in grads.values())


def test_a_start_that_is_not_finite_is_refused() -> None:
    spoilt = batch(0)
    spoilt.tokens[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteLoss, match="the start has tokens that are not finite") as error:
        Learner(TrainConfig(**SMALL), D, "cpu", Alone(), {}).start([batch(1), spoilt])
    assert error.value.ids == [*batch(1).ids, *spoilt.ids]


@pytest.mark.parametrize("normalise", ["none", "norm", "standardise"])
def test_the_export_takes_the_stream_as_it_is(normalise: str) -> None:
    learner = learner_of(normalise=normalise, dead_term="none", lr=0.01, start_batches=2)
    assert learner.state.position == 2 * IMAGES
    learner.step(batch(0))
    sae = learner.export()
    assert sae is not None
    tokens = batch(1)
    z = sae.encode(tokens.tokens)
    error = (sae.decode(z, like=tokens.tokens) - tokens.tokens).square().sum()
    terms = learner.step(tokens)
    assert terms.l0.item() == pytest.approx(z.l0, rel=1e-5)
    if normalise == "none":
        assert terms.squared_error.item() == pytest.approx(error.item(), rel=1e-4)


def test_more_micro_batches_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="accumulate is 7; expected at most batch_size, 6"):
        learner_of(accumulate=7)


def test_more_latents_than_the_memory_has_are_refused_before_they_are_made() -> None:
    with (
        little_memory(),
        pytest.raises(ValueError, match=r"expansion is 10,000,000,000: .* take .* [TP]B of mem"),
    ):
        learner_of(expansion=10**10)


@pytest.mark.parametrize("init", ["tied", "data"])
@pytest.mark.parametrize("variant", ["relu", "topk", "batchtopk", "matryoshka"])
def test_a_tied_encoder_starts_at_the_scale_that_fits_the_first_batch(variant: str, init: str) -> None:
    """The released decoder twice would reconstruct relu's tokens S / (2 D) = 4 times too long."""
    learner = learner_of(variant=variant, init=init, k=16)
    state, x = learner.state, batch(99).tokens

    def error(factor: float) -> float:
        params = {**state.params, "W_enc": state.params["W_enc"] * factor}
        return learner.variant.squared_errors(x, params, state.buffers, Alone()).sum().item()

    assert error(1.0) < 0.9 * (x - state.params["b_dec"]).square().sum().item()
    assert min(error(0.9), error(1.1)) > error(1.0)


@pytest.mark.parametrize("kind", LOSSES)
def test_autocast_changes_no_bit(kind: str) -> None:
    """Also where most latents are active, and products are dense."""
    learners = [learner_of(**LOSSES[kind]) for _ in range(2)]
    for learner, enabled in zip(learners, (False, True), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            learner.step(batch(0))
    expected, found = map(snapshot, learners)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

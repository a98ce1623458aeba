"""Resampled latents: where they start, which tokens are drawn, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Alone
from patchsae.training.variants import Variant, resample

from .cases import VARIANTS, Case, make_case, variant_of
from .dense import Recipe


def used_adam(params: dict[str, Tensor]) -> pk.AdamState:
    adam = pk.adam_init(params)
    for moments in (adam.exp_avg, adam.exp_avg_sq):
        for moment in moments.values():
            moment.fill_(0.7)
    return adam


def run(variant: Variant, case: Case, seed: int = 0) -> tuple[Tensor, pk.AdamState]:
    adam, generator = used_adam(case.params), torch.Generator().manual_seed(seed)
    buffers = variant.buffers(case.params)
    return resample(variant, case.x, case.params, buffers, adam, case.dead, generator, Alone()), adam


@pytest.mark.parametrize("name", VARIANTS)
def test_restarted_latents_start_again_and_the_others_stay(name: str) -> None:
    variant = variant_of(Recipe(name))
    case = make_case(variant, 1)
    before = {key: p.detach().clone() for key, p in case.params.items()}
    restarted, adam = run(variant, case)
    assert torch.equal(restarted, case.dead)
    norm = before["W_enc"][:, ~case.dead].norm(dim=0).mean()
    directions = case.params["W_dec"].detach()[case.dead]
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(len(directions)).double())
    torch.testing.assert_close(case.params["W_enc"].detach()[:, case.dead], (0.2 * norm * directions).T)
    tokens = torch.nn.functional.normalize(case.x.flatten(0, 1) - before["b_dec"], dim=1)
    nearest, which = (directions @ tokens.T).max(dim=1)
    torch.testing.assert_close(nearest, torch.ones_like(nearest))
    assert len(which.unique()) == len(which), "no token twice"
    for key, value in variant.restart().items():
        assert (case.params[key][case.dead] == value).all()
    for key, p in case.params.items():
        alive = p.detach().T if key == "W_enc" else p.detach()
        was = before[key].T if key == "W_enc" else before[key]
        moments = [m[key].T if key == "W_enc" else m[key] for m in (adam.exp_avg, adam.exp_avg_sq)]
        kept = torch.ones(len(alive), dtype=torch.bool) if key == "b_dec" else ~case.dead
        assert torch.equal(alive[kept], was[kept])
        assert all((moment[kept] == 0.7).all() and not moment[~kept].any() for moment in moments)


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated"])
def test_resampled_latents_fire(name: str) -> None:
    variant = variant_of(Recipe(name))
    case = make_case(variant, 2)
    case.params["b_enc"].detach()[case.dead] = -100.0
    silent = variant.step(case.x, case.params, {}, None, Alone())[0].fired
    assert not silent[case.dead].any()
    restarted, _ = run(variant, case)
    fired = variant.step(case.x, case.params, {}, None, Alone())[0].fired
    assert restarted.any()
    assert fired[restarted].all()


def test_tokens_are_drawn_in_proportion_to_the_square_of_their_squared_error() -> None:
    """One dead latent, tokens with errors 1, 2 and 3 (a silent SAE reconstructs nothing): weights 1, 16 and 81."""
    variant = variant_of(Recipe("relu"))
    counts = torch.zeros(3)
    for seed in range(250):
        case = make_case(variant, 0, width=3, latents=4)
        for parameter in case.params.values():
            parameter.detach().zero_()
        x = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double()
        dead = torch.tensor([False, True, False, False])
        run(variant, Case(x, case.params, dead), seed)
        counts += case.params["W_dec"].detach()[1].float()
    expected = torch.tensor([1.0, 16.0, 81.0]) / 98
    torch.testing.assert_close(counts / 250, expected, rtol=0, atol=0.08)


def test_dead_latents_beyond_the_tokens_stay_dead() -> None:
    variant = variant_of(Recipe("relu"))
    case = make_case(variant, 0, images=1, tokens=3, dead_share=1.0)
    case.params["b_enc"].detach().fill_(-100.0)
    restarted, _ = run(variant, case)
    assert restarted.tolist() == [True] * 3 + [False] * 13
    assert (case.params["b_enc"][3:] == -100).all()


def test_no_dead_latents_no_change() -> None:
    variant = variant_of(Recipe("topk"))
    case = make_case(variant, 0, dead_share=0.0)
    before = {key: p.detach().clone() for key, p in case.params.items()}
    restarted, _ = run(variant, case)
    assert not restarted.any()
    assert all(torch.equal(case.params[key], value) for key, value in before.items())


def test_the_threshold_of_batchtopk_does_not_move() -> None:
    variant = variant_of(Recipe("batchtopk"))
    case = make_case(variant, 0)
    buffers = {"threshold": torch.tensor(0.25).double()}
    generator = torch.Generator().manual_seed(0)
    resample(variant, case.x, case.params, buffers, used_adam(case.params), case.dead, generator, Alone())
    assert buffers["threshold"] == 0.25

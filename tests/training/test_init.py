"""The start: initial weights against PyTorch's initialiser, the geometric median against its optimality condition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchsae.models.sae import SparseAutoencoder
from patchsae.training.init import geometric_median, start_centre, start_sae


def distances(points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    return (points - centre).norm(dim=1)


def optimality_gap(points: torch.Tensor, centre: torch.Tensor) -> float:
    """How far `centre` is from having 0 in the subgradient of the sum of distances, as a share of n.

    Points at the centre contribute any vector of length up to 1 each; the others their unit vectors.
    """
    away = distances(points, centre)
    at_centre = away < 1e-5
    pull = ((points - centre) / away.unsqueeze(1))[~at_centre].sum(dim=0).norm()
    return max(0.0, pull.item() - int(at_centre.sum())) / len(points)


@given(seed=st.integers(0, 10_000), n=st.integers(3, 40), d=st.integers(1, 6))
def test_geometric_median_meets_the_subgradient_condition(seed: int, n: int, d: int) -> None:
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    median = geometric_median(points, max_iterations=3000, ftol=0.0)
    assert optimality_gap(points, median) < 1e-3


def test_hundred_iterations_reach_the_median_of_a_batch() -> None:
    points = torch.randn(64, 200, generator=torch.Generator().manual_seed(0)).exp()
    assert optimality_gap(points, geometric_median(points)) < 1e-5
    assert optimality_gap(points, points.mean(dim=0)) > 1e-2


def test_half_of_the_points_in_one_place_hold_the_median() -> None:
    points = torch.cat([torch.ones(6, 3), 1000 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1))])
    torch.testing.assert_close(geometric_median(points), torch.ones(3), atol=1e-3, rtol=0)


@given(seed=st.integers(0, 10_000))
def test_geometric_median_moves_turns_and_scales_with_the_points(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    shift = torch.randn(4, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    moved = geometric_median(3 * points @ turn + shift)
    torch.testing.assert_close(moved, 3 * geometric_median(points) @ turn + shift, atol=1e-4, rtol=1e-4)


def test_released_start_is_the_median_over_image_grids_averaged_over_tokens() -> None:
    residual = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(2)).exp()
    grids = start_centre(residual, "geometric-median")
    torch.testing.assert_close(grids, geometric_median(residual.reshape(8, 15)).reshape(5, 3).mean(dim=0))
    tokens = start_centre(residual, "token-median")
    assert optimality_gap(residual.reshape(40, 3), tokens) < 1e-4
    assert not torch.allclose(grids, tokens, atol=1e-3)
    torch.testing.assert_close(start_centre(residual, "mean"), residual.reshape(40, 3).mean(dim=0))
    assert start_centre(residual, "zeros").tolist() == [0.0, 0.0, 0.0]


def started(seed: int, d_in: int = 16, expansion: int = 32, **options: str) -> SparseAutoencoder:
    residual = torch.randn(4, 3, d_in, generator=torch.Generator().manual_seed(0)) + 5
    return start_sae(residual, expansion=expansion, seed=seed, **options)


def test_weights_have_the_bounds_of_torchs_kaiming_uniform() -> None:
    sae = started(seed=42)
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(16, 512))
    bound = (6 / 512) ** 0.5
    for drawn in (sae.W_enc.detach(), theirs):
        assert bound * 0.99 < drawn.abs().max().item() <= bound
        assert drawn.mean().abs().item() < bound / 20
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(512))
    assert sae.W_enc.shape == (16, 512)
    assert sae.b_enc.abs().sum() == 0


def test_encoder_and_decoder_are_independent_draws_and_the_seed_decides() -> None:
    sae, again, other = started(42), started(42), started(43)
    for name, parameter in sae.named_parameters():
        assert torch.equal(parameter, getattr(again, name)), name
    assert not torch.equal(sae.W_enc, other.W_enc)
    cosines = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1)
    assert cosines.mean().abs().item() < 0.05


def test_start_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    started(42)
    assert torch.equal(torch.get_rng_state(), before)


def test_b_dec_is_the_centre_of_the_batch() -> None:
    assert started(42).b_dec.mean().item() == pytest.approx(5, abs=0.5)
    assert started(42, start="zeros").b_dec.abs().sum() == 0


def test_wrong_inputs_name_the_argument() -> None:
    with pytest.raises(ValueError, match="points has shape"):
        geometric_median(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="residual has shape"):
        start_centre(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="start is 'median'"):
        start_centre(torch.zeros(2, 4, 3), "median")


def batches_of(seed: int, sizes: list[int], shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(sum(sizes), *shape, generator=generator, dtype=torch.float64).exp()
    return list(points.split(sizes))


@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_several_batches_are_as_good_as_one_large_one(seed: int, sizes: list[int]) -> None:
    batches = batches_of(seed, sizes, (4, 3))
    for start in ("geometric-median", "token-median", "mean", "zeros"):
        whole = start_centre(torch.cat(batches), start)
        torch.testing.assert_close(
            start_centre(batches, start), whole, atol=1e-7, rtol=1e-7, check_dtype=start != "zeros", msg=start
        )


def test_centres_over_tokens_need_no_images() -> None:
    (tokens,) = batches_of(0, [30], (3,))
    for start in ("token-median", "mean", "zeros"):
        assert torch.equal(start_centre(tokens, start), start_centre(tokens.view(6, 5, 3), start))


def test_tied_start_is_the_released_decoder_twice() -> None:
    tied, released = started(42, init="tied"), started(42)
    assert torch.equal(tied.W_dec, released.W_dec)
    assert torch.equal(tied.W_enc, tied.W_dec.T)
    assert tied.W_enc.stride() == (1, 16)
    assert tied.b_enc.abs().sum() == 0


@pytest.mark.parametrize("tokens", [700, 50])
def test_data_start_points_from_b_dec_to_tokens(tokens: int) -> None:
    residual = torch.randn(tokens, 1, 16, generator=torch.Generator().manual_seed(0)) + 5
    sae = start_sae([residual[:20], residual[20:]], expansion=32, seed=3, init="data")
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(512))
    cosines = sae.W_dec @ torch.nn.functional.normalize(residual.squeeze(1) - sae.b_dec, dim=1).T
    best, nearest = cosines.max(dim=1)
    assert best.min() > 0.85
    used = torch.bincount(nearest, minlength=tokens)
    assert used.max() <= -(-512 // tokens), "tokens come again only when all have been used"
    alike = sae.W_dec @ sae.W_dec.T - torch.eye(512)
    assert alike.max() < 1 - 1e-3, "two rows of one token differ"


def test_a_seed_decides_the_data_start() -> None:
    one, again, other = (started(seed, init="data") for seed in (42, 42, 43))
    assert torch.equal(one.W_dec, again.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)


def test_wrong_starts_name_the_argument() -> None:
    with pytest.raises(ValueError, match="init is 'kaiming'"):
        started(42, init="kaiming")
    with pytest.raises(ValueError, match="batches is empty"):
        start_centre([])
    with pytest.raises(ValueError, match="residual has shape"):
        start_centre([torch.zeros(2, 4, 3), torch.zeros(8, 3)])
    with pytest.raises(ValueError, match="points has shape"):
        geometric_median([])

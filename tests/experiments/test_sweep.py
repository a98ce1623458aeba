"""The sweep against full forward passes with dense latents, and its two ends against what they must be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.naive_masking import naive_sweep
from patchsae.clip import load_clip
from patchsae.experiments.rankings import random_rank
from patchsae.experiments.sweep import (
    ABLATE,
    KEEP,
    RECONSTRUCTION,
    UNMODIFIED,
    Variant,
    sweep_embeddings,
    sweep_ks,
    variants,
)
from tests.experiments.worlds import S, make_sae
from tests.small_clips import VARIANTS, pixels, write_clip

C = 3
KS = (1, 5, 40, S)


def make_rankings(seed: int = 0, latents: int = S) -> dict[str, torch.Tensor]:
    by_class = torch.stack([random_rank(latents, seed + label) for label in range(C)])
    return {"class": by_class, "random": random_rank(latents, seed + C)}


def compare(clip, sae, images, labels, rankings, ks, **options) -> float:
    """Largest difference of any embedding from the naive sweep; the variants must be the same."""
    ours = sweep_embeddings(clip, sae, images, labels, rankings, ks, **options)
    offset = options.get("bias_offset", 0.0)
    naive = naive_sweep(clip.model, clip.layer, sae.state_dict(), images, labels, rankings, ks, offset)
    assert ours.keys() == naive.keys() == set(variants(list(rankings), ks))
    return max(float((ours[variant] - naive[variant]).abs().max()) for variant in naive)


@settings(max_examples=8)
@given(st.integers(0, 99), st.integers(1, 6), st.sampled_from([1, 512]), st.sampled_from([0.0, 0.1]))
def test_agrees_with_a_full_pass_per_mask(clip, sae, seed, images, budget, offset) -> None:
    labels = torch.randint(0, C, (images,), generator=torch.Generator().manual_seed(seed))
    some = pixels(images, seed=seed)
    assert compare(clip, sae, some, labels, make_rankings(seed), KS, budget_mb=budget, bias_offset=offset) < 1e-5


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("variant", ["gelu", "average_pool", "layer_scale"])
def test_agrees_on_other_towers_and_blocks(variant, layer, sae, tmp_path) -> None:
    assert variant in VARIANTS
    clip = load_clip(f"local-dir:{write_clip(tmp_path / variant, variant)}", layer=layer, device="cpu")
    assert compare(clip, sae, pixels(3), torch.tensor([2, 0, 1]), make_rankings(), (2, S)) < 1e-5


def test_chunks_that_cut_the_batch_change_nothing_but_rounding(clip, sae) -> None:
    some, labels = pixels(40), torch.arange(40) % C
    ks = tuple(range(1, 13))  # 24 reconstructions of 17 x 32 floats: 20 images a MB
    whole = sweep_embeddings(clip, sae, some, labels, make_rankings(), ks)
    cut = sweep_embeddings(clip, sae, some, labels, make_rankings(), ks, budget_mb=1)
    for variant, expected in whole.items():
        torch.testing.assert_close(cut[variant], expected, rtol=0, atol=1e-6)


def test_keeping_all_is_the_reconstruction_and_ablating_all_is_b_dec(clip, sae) -> None:
    some = pixels(4)
    result = sweep_embeddings(clip, sae, some, torch.tensor([0, 1, 2, 0]), make_rankings(), KS)
    residual = clip.residual(some)
    with torch.no_grad():
        full = clip.embed(sae(residual))
        nothing = clip.embed(sae.b_dec.expand(residual.shape))
    torch.testing.assert_close(result[UNMODIFIED], clip.embed(residual), rtol=0, atol=0)
    torch.testing.assert_close(result[RECONSTRUCTION], full, rtol=0, atol=1e-6)
    for name in ("class", "random"):
        torch.testing.assert_close(result[Variant(name, KEEP, S)], full, rtol=0, atol=1e-6)
        torch.testing.assert_close(result[Variant(name, ABLATE, S)], nothing, rtol=0, atol=1e-6)


def test_the_lower_tower_and_the_encoder_run_once(clip, sae) -> None:
    passes = []
    blocks = clip.model.visual.transformer.resblocks
    handles = [blocks[0].register_forward_hook(lambda *_: passes.append("tower"))]
    try:
        sweep_embeddings(clip, sae, pixels(5), torch.zeros(5, dtype=torch.long), make_rankings(), KS, budget_mb=1)
    finally:
        for handle in handles:
            handle.remove()
    assert passes == ["tower"]


def test_each_image_is_masked_by_its_own_class(clip, sae) -> None:
    rankings = {"class": make_rankings()["class"]}
    some = pixels(1).expand(C, -1, -1, -1)
    result = sweep_embeddings(clip, sae, some, torch.arange(C), rankings, (5,))[Variant("class", KEEP, 5)]
    for label in range(C):
        alone = sweep_embeddings(clip, sae, some[:1], torch.zeros(1).long(), {"one": rankings["class"][label]}, (5,))
        torch.testing.assert_close(result[label], alone[Variant("one", KEEP, 5)][0], rtol=0, atol=1e-6)
    assert float((result[0] - result[1]).abs().max()) > 1e-3


def test_ks_above_the_dictionary_are_dropped_and_its_size_is_there() -> None:
    assert sweep_ks((500, 1, 96, 10, 1), 96) == (1, 10, 96)
    assert sweep_ks((), 7) == (7,)
    with pytest.raises(ValueError, match="ks holds 0"):
        sweep_ks((0, 5), 7)


@pytest.mark.slow
def test_agrees_for_vit_b_16_with_a_dictionary_of_full_size() -> None:
    from benches.bench_masking import build_case

    case = build_case(images=2)
    difference = compare(case.clip, case.sae, case.pixels, case.labels, case.rankings, (1, 10, 100, 2000, 49_152))
    assert difference < 1e-5


def test_the_random_world_has_latents_to_mask(clip) -> None:
    sae = make_sae(clip.width)
    assert 4 < sae.encode(clip.residual(pixels(4))).l0 < S / 2

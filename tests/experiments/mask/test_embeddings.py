"""The sweep against full forward passes with dense latents, and its two ends against what they must be."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from benches.naive_masking import naive_sweep
from patchsae.experiments.classes.rankings import random_rank
from patchsae.experiments.mask import embeddings
from patchsae.experiments.mask.embeddings import (
    ABLATE,
    KEEP,
    RECONSTRUCTION,
    UNMODIFIED,
    Masking,
    embedding_bytes,
    even_runs,
    images_per_chunk,
    maskings,
    sweep_embeddings,
    sweep_ks,
)
from patchsae.experiments.mask.options import TopKOptions
from patchsae.models.clip import load_clip
from tests.examples import examples
from tests.experiments.worlds import S, make_prompted, make_sae
from tests.small_clips import VARIANTS, pixels, write_clip

C = 3
KS = (1, 5, 40, S)


def make_rankings(seed: int = 0, latents: int = S) -> dict[str, torch.Tensor]:
    by_class = torch.stack([random_rank(latents, seed + label) for label in range(C)])
    return {"class": by_class, "random": random_rank(latents, seed + C)}


def compare(clip, sae, images, labels, rankings, ks, **options) -> float:
    """Largest difference of any embedding from the naive sweep; the maskings must be the same."""
    ours = sweep_embeddings(clip, sae, images, labels, rankings, TopKOptions(ks, **options))
    offset = options.get("bias_offset", 0.0)
    naive = naive_sweep(clip.model, clip.layer, sae.state_dict(), images, labels, rankings, ks, offset)
    assert ours.keys() == naive.keys() == set(maskings(list(rankings), ks))
    return max(float((ours[masking] - naive[masking]).abs().max()) for masking in naive)


@examples(8)
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


def one_by_one(
    clip, sae, images, labels, rankings, ks, offset: float, keep_prompts: bool
) -> dict[Masking, torch.Tensor]:
    """Every mask of every image decoded and embedded alone."""
    residual = clip.residual(images)
    count = clip.image_tokens if keep_prompts else residual.shape[1]

    def embed(decoded, image) -> torch.Tensor:
        return clip.embed(torch.cat([decoded + offset, residual[image, count:]])[None])[0]

    found: dict[Masking, list[torch.Tensor]] = {masking: [] for masking in maskings(list(rankings), ks)}
    for image, label in enumerate(labels.tolist()):
        latents = sae.encode(residual[image, :count])
        found[UNMODIFIED].append(clip.embed(residual[image : image + 1])[0])
        found[RECONSTRUCTION].append(embed(pk.decode(latents, sae.W_dec, sae.b_dec), image))
        for masking in maskings(list(rankings), ks)[2:]:
            rank = (
                rankings[masking.ranking] if rankings[masking.ranking].ndim == 1 else rankings[masking.ranking][label]
            )
            keep = rank < masking.k if masking.mode == KEEP else rank >= masking.k
            found[masking].append(embed(pk.decode_masked(latents, keep, sae.W_dec, sae.b_dec), image))
    return {masking: torch.stack(embeddings) for masking, embeddings in found.items()}


@pytest.fixture(params=["cls alone", "whole blocks", "prompted"])
def model(request, clip, clip_folder):
    if request.param == "prompted":
        return make_prompted(clip, ["a", "b", "c"])
    return clip if request.param == "cls alone" else load_clip(f"local-dir:{clip_folder}", layer=0, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("keep_prompts", [False, True])
def test_masks_embedded_together_are_those_embedded_one_by_one(model, sae, keep_prompts, monkeypatch) -> None:
    some, labels, ks = pixels(13), torch.arange(13) % C, (1, 2, 3, 5, 8, 13, 21, 34, 55, S)
    with torch.no_grad():
        alone = one_by_one(model, sae, some, labels, make_rankings(), ks, 0.1, keep_prompts)
    options = {"bias_offset": 0.1, "keep_prompt_tokens": keep_prompts}
    for budget, tensor_bytes in [(512, 16 << 20), (1, 16 << 20), (512, 5 * 17 * 32 * 4), (1, 1)]:
        monkeypatch.setattr(embeddings, "CPU_TENSOR_BYTES", tensor_bytes)
        masks = TopKOptions(ks, budget_mb=budget, **options)
        together = sweep_embeddings(model, sae, some, labels, make_rankings(), masks)
        assert list(together) == list(alone)
        for masking, expected in alone.items():
            torch.testing.assert_close(together[masking], expected, rtol=0, atol=1e-6)


def embedded(clip, monkeypatch, run) -> list[int]:
    """Images of every call of `clip.embed` that ``run`` makes."""
    calls: list[int] = []
    inner = clip.embed

    def embed(residual):
        calls.append(len(residual))
        return inner(residual)

    with monkeypatch.context() as patch:
        patch.setattr(clip, "embed", embed)
        run()
    return calls


@pytest.mark.parametrize("keep_prompts", [False, True])
def test_the_masks_of_a_chunk_are_embedded_in_one_call_and_chunks_are_equal(
    model, sae, keep_prompts, monkeypatch
) -> None:
    monkeypatch.setattr(embeddings, "CPU_TENSOR_BYTES", 1 << 30)
    some, labels, ks = pixels(64), torch.arange(64) % C, tuple(range(1, 13))

    def calls(budget: int) -> list[int]:
        masks = TopKOptions(ks, budget_mb=budget, keep_prompt_tokens=keep_prompts)
        return embedded(model, monkeypatch, lambda: sweep_embeddings(model, sae, some, labels, make_rankings(), masks))

    assert calls(512) == [64, 64, 24 * 64, 24 * 64]
    unmodified, reconstruction, *masked = calls(1)
    assert (unmodified, reconstruction, sum(masked)) == (64, 64, 2 * 24 * 64)
    chunks = [size // 24 for size in masked]
    assert chunks[::2] == chunks[1::2]  # both rankings
    assert len(chunks[::2]) > 2
    assert max(chunks) - min(chunks) <= 1


def test_a_cpu_embeds_as_many_masks_at_once_as_its_bound_allows(clip, sae, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "CPU_TENSOR_BYTES", 20 * 17 * 32 * 4)
    calls = embedded(
        clip,
        monkeypatch,
        lambda: sweep_embeddings(clip, sae, pixels(7), torch.zeros(7).long(), make_rankings(), TopKOptions((1, 5, 40))),
    )
    assert calls == [7, 7, *2 * [10, 11, 10, 11]]  # those that keep, those that ablate: 21 each


def test_the_masks_are_held_once_while_they_are_embedded(clip, sae, monkeypatch) -> None:
    held, taken = [], []
    inner = clip.embed

    def embed(residual):
        # no fake ones, which other tests trace and which hold nothing
        tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        held.append(sum(storages.values()))
        taken.append(residual.untyped_storage().nbytes())
        return inner(residual)

    monkeypatch.setattr(clip, "embed", embed)
    sweep_embeddings(clip, sae, pixels(20), torch.zeros(20).long(), make_rankings(), TopKOptions(tuple(range(1, 13))))
    for now, masks in zip(held[2:], taken[2:], strict=True):
        assert now - held[0] < 1.5 * masks


def test_the_offset_is_in_every_reconstruction(clip, sae, monkeypatch) -> None:
    """Layer norms take a constant out again, so no embedding shows it: the law is on what is embedded."""
    inner, taken = clip.embed, []
    monkeypatch.setattr(clip, "embed", lambda residual: taken.append(residual) or inner(residual))
    for offset in (0.0, 0.5):
        masks = TopKOptions(KS, bias_offset=offset)
        sweep_embeddings(clip, sae, pixels(3), torch.zeros(3).long(), make_rankings(), masks)
    plain, shifted = taken[:4], taken[4:]
    assert shifted[0].equal(plain[0])  # the unmodified residual stream
    for before, after in zip(plain[1:], shifted[1:], strict=True):
        torch.testing.assert_close(after, before + 0.5, rtol=0, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 300))
def test_runs_are_few_and_equal_to_within_one(count, most) -> None:
    runs = even_runs(count, most)
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(count))
    sizes = [run.stop - run.start for run in runs]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert (len(runs) - 1) * most < count


@pytest.mark.slow
def test_128_images_of_the_paper_make_four_equal_chunks() -> None:
    clip = load_clip("ViT-B-16-quickgelu", "random", device="cpu")
    held, _ = embedding_bytes(clip, clip.image_tokens)
    runs = even_runs(128, images_per_chunk(20 * held, 512))
    assert [run.stop - run.start for run in runs] == [32, 32, 32, 32]


def test_a_budget_too_small_for_an_image_takes_one() -> None:
    assert images_per_chunk(3 << 20, 2) == 1


def test_keeping_all_is_the_reconstruction_and_ablating_all_is_b_dec(clip, sae) -> None:
    some = pixels(4)
    result = sweep_embeddings(clip, sae, some, torch.tensor([0, 1, 2, 0]), make_rankings(), TopKOptions(KS))
    residual = clip.residual(some)
    with torch.no_grad():
        full = clip.embed(sae(residual))
        nothing = clip.embed(sae.b_dec.expand(residual.shape))
    torch.testing.assert_close(result[UNMODIFIED], clip.embed(residual), rtol=0, atol=0)
    torch.testing.assert_close(result[RECONSTRUCTION], full, rtol=0, atol=1e-6)
    for name in ("class", "random"):
        torch.testing.assert_close(result[Masking(name, KEEP, S)], full, rtol=0, atol=1e-6)
        torch.testing.assert_close(result[Masking(name, ABLATE, S)], nothing, rtol=0, atol=1e-6)


def test_the_lower_tower_and_the_encoder_run_once(clip, sae) -> None:
    passes = []
    blocks = clip.model.visual.transformer.resblocks
    handles = [blocks[0].register_forward_hook(lambda *_: passes.append("tower"))]
    try:
        masks = TopKOptions(KS, budget_mb=1)
        sweep_embeddings(clip, sae, pixels(5), torch.zeros(5, dtype=torch.long), make_rankings(), masks)
    finally:
        for handle in handles:
            handle.remove()
    assert passes == ["tower"]


def test_each_image_is_masked_by_its_own_class(clip, sae) -> None:
    rankings = {"class": make_rankings()["class"]}
    some = pixels(1).expand(C, -1, -1, -1)
    result = sweep_embeddings(clip, sae, some, torch.arange(C), rankings, TopKOptions((5,)))[Masking("class", KEEP, 5)]
    for label in range(C):
        own = {"one": rankings["class"][label]}
        alone = sweep_embeddings(clip, sae, some[:1], torch.zeros(1).long(), own, TopKOptions((5,)))
        torch.testing.assert_close(result[label], alone[Masking("one", KEEP, 5)][0], rtol=0, atol=1e-6)
    assert float((result[0] - result[1]).abs().max()) > 1e-3


def test_ks_above_the_dictionary_are_dropped_and_its_size_is_there() -> None:
    assert sweep_ks((500, 1, 96, 10, 1), 96) == (1, 10, 96)
    assert sweep_ks((), 7) == (7,)


@pytest.mark.slow
def test_agrees_for_vit_b_16_with_a_dictionary_of_full_size() -> None:
    from benches.vit import build_case

    case = build_case(images=2)
    difference = compare(case.clip, case.sae, case.pixels, case.labels, case.rankings, (1, 100, 49_152))
    assert difference < 1e-5


def test_the_random_world_has_latents_to_mask(clip) -> None:
    sae = make_sae(clip.width)
    assert 4 < sae.encode(clip.residual(pixels(4))).l0 < S / 2

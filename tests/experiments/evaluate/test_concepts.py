"""Concept scores: right by brute force, nothing learnt from the images they are judged on, one result in any order."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.experiments.evaluate.concepts import THRESHOLDS, ConceptCounts, ConceptScores, patch_maxima
from tests.experiments.evaluate.test_average_precision import by_hand

B, T, S, V = 24, 10, 7, 3
NAMES = (("colour", "red"), ("colour", "blue"), ("style", "flat"))


def world(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [B, T, S] (latent 6 never fires), concepts present [B, V], masks [B, V, T - 1]."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(B, T, S, generator=generator).relu() * 2
    dense[:, :, 6] = 0
    masks = torch.rand(B, V, T - 1, generator=generator) < 0.3
    masks &= torch.rand(B, V, 1, generator=generator) < 0.6
    dense[:, 1:, 2] = 0.1 * dense[:, 1:, 2] + 3 * masks[:, 1]  # latent 2 knows concept 1
    return dense, masks.any(2), masks


def scored(dense: Tensor, present: Tensor, masks: Tensor | None) -> ConceptScores:
    return counted(dense, present, masks, list(range(B))).finalize()


def counted(dense: Tensor, present: Tensor, masks: Tensor | None, *batches: list[int]) -> ConceptCounts:
    counts = ConceptCounts(NAMES, S, T)
    for images in batches:
        latents = pk.SparseLatents.from_dense(dense[images].flatten(0, 1))
        counts.update(latents, torch.tensor(images), present[images], None if masks is None else masks[images])
    return counts


def assert_same_bits(found: ConceptScores, expected: ConceptScores) -> None:
    for field in dataclasses.fields(ConceptScores):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert a.numpy().tobytes() == b.numpy().tobytes() if isinstance(a, Tensor) else a == b, field.name


def iou_by_hand(active: Tensor, mask: Tensor) -> float:
    return float((active & mask).sum() / (active | mask).sum())


def test_the_scores_are_those_of_brute_force() -> None:
    dense, present, masks = world()
    found = scored(dense, present, masks)
    best_patch = dense[:, 1:].amax(1).numpy()
    on, judged = slice(0, None, 2), slice(1, None, 2)
    for v in range(V):
        chosen = [by_hand(best_patch[on, s], present[on, v].numpy()) for s in range(S)]
        latent = max(range(S), key=chosen.__getitem__)
        assert int(found.latent[v]) == latent
        judge = [by_hand(best_patch[judged, s], present[judged, v].numpy()) for s in range(S)]
        assert float(found.chosen_precision[v]) == pytest.approx(chosen[latent], abs=1e-12)
        assert float(found.precision[v]) == pytest.approx(judge[latent], abs=1e-12)
        assert float(found.random_precision[v]) == pytest.approx(sum(judge[:6]) / 6, abs=1e-12)
        assert float(found.base_rate[v]) == pytest.approx(float(present[judged, v].double().mean()))
        overlap = []
        for s in range(S):
            patches = dense[:, 1:, s]
            by_threshold = [iou_by_hand(patches[on] > t, masks[on, v]) for t in THRESHOLDS]
            best = max(range(len(THRESHOLDS)), key=by_threshold.__getitem__)
            overlap.append((THRESHOLDS[best], iou_by_hand(patches[judged] > THRESHOLDS[best], masks[judged, v])))
        assert float(found.threshold[v]) == pytest.approx(overlap[latent][0], rel=1e-6)
        assert float(found.iou[v]) == pytest.approx(overlap[latent][1], rel=1e-6)
        assert float(found.random_iou[v]) == pytest.approx(sum(iou for _, iou in overlap[:6]) / 6, rel=1e-6)
    assert int(found.latent[1]) == 2


def test_what_is_chosen_does_not_depend_on_the_images_that_judge() -> None:
    dense, present, masks = world()
    found = scored(dense, present, masks)
    other, other_present, other_masks = world(seed=9)
    for tensor, change in ((dense, other), (present, other_present), (masks, other_masks)):
        tensor[1::2] = change[1::2]
    again = scored(dense, present, masks)
    for name in ("latent", "threshold", "chosen_precision"):
        assert torch.equal(getattr(found, name), getattr(again, name)), name
    assert not torch.equal(found.precision, again.precision)
    assert not torch.equal(found.iou, again.iou)


def test_cls_says_nothing() -> None:
    dense, present, masks = world()
    found = scored(dense, present, masks)
    dense[:, 0] = 100 * present[:, :1]
    assert_same_bits(scored(dense, present, masks), found)


def test_batches_order_and_merging_make_no_difference() -> None:
    data = world()
    expected = scored(*data)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1)).tolist()
    assert_same_bits(counted(*data, order[:5], order[5:6], order[6:]).finalize(), expected)
    for first, second in ((order[:9], order[9:]), (order[9:], order[:9])):
        merged = counted(*data, first)
        merged.merge(counted(*data, second))
        assert_same_bits(merged.finalize(), expected)


def test_a_saved_state_goes_on_to_the_same_bits() -> None:
    dense, present, masks = world()
    resumed = ConceptCounts(NAMES, S, T)
    saved = counted(dense, present, masks, [3, 0, 7], [11]).state_dict()
    resumed.load_state_dict({key: value.clone() for key, value in saved.items()})
    rest = [i for i in range(B) if i not in (3, 0, 7, 11)]
    resumed.update(
        pk.SparseLatents.from_dense(dense[rest].flatten(0, 1)), torch.tensor(rest), present[rest], masks[rest]
    )
    assert_same_bits(resumed.finalize(), scored(dense, present, masks))


def test_a_concept_that_a_half_does_not_have_has_no_score() -> None:
    dense, present, masks = world()
    present[0::2, 1], masks[0::2, 1] = False, False
    found = scored(dense, present, masks)
    assert int(found.latent[1]) == -1
    for name in ("precision", "base_rate", "iou", "threshold", "random_precision", "random_iou"):
        assert getattr(found, name).isnan().tolist() == [False, True, False], name
    assert found.mean_precision == pytest.approx(float(found.precision[[0, 2]].mean()))


def test_without_masks_there_is_precision_alone() -> None:
    dense, present, masks = world()
    found, masked = scored(dense, present, None), scored(dense, present, masks)
    assert torch.equal(found.precision, masked.precision)
    assert bool(found.iou.isnan().all())
    assert bool(found.random_iou.isnan().all())


def test_the_score_of_an_image_is_the_largest_patch() -> None:
    dense, _, _ = world()
    found = patch_maxima(pk.SparseLatents.from_dense(dense.flatten(0, 1)), T)
    assert torch.equal(found.validate().to_dense(), dense[:, 1:].amax(1))

"""Both rankings in both models: against full passes, prompts apart, at the price of two extractions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchsae.data import Sample
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run
from patchsae.experiments import compare
from patchsae.experiments.classes.rankings import rank_by
from patchsae.experiments.compare import Comparison, Side, crossed
from patchsae.experiments.compare.crossed_result import CrossedResult
from patchsae.experiments.compare.options import CompareOptions, CrossOptions, cross_options
from patchsae.experiments.mask.embeddings import ABLATE, KEEP, RECONSTRUCTION, UNMODIFIED, Masking
from patchsae.experiments.mask.options import TopKOptions
from patchsae.report import build
from tests.experiments.worlds import CountingCLIP, CountingSAE, S, make_images, make_prompted, make_sae, pixels_of

RANKED, TESTED = 14, 11
COMPARE = CompareOptions(batch_size=4, noisy_above=10, show_latents=0, templates=("a {}.",), groups="base-novel")
CROSS = cross_options(COMPARE, TopKOptions(ks=(1, 10)))
KS = (1, 10, S)


def sides_of(clip, adapted) -> tuple[Side, Side]:
    return Side("CLIP", clip, make_images(RANKED)), Side("prompted", adapted, make_images(RANKED))


@pytest.fixture(scope="module")
def prompted(clip):
    return make_prompted(clip, make_images(1).classnames)


@pytest.fixture(scope="module")
def compared(clip, prompted, sae, tmp_path_factory) -> Comparison:
    stage = Run(tmp_path_factory.mktemp("compared")).stage("compare")
    return compare.run(*sides_of(clip, prompted), sae, stage, COMPARE)


@pytest.fixture(scope="module")
def found(clip, prompted, sae, compared, tmp_path_factory) -> tuple[CrossedResult, Run]:
    run = Run(tmp_path_factory.mktemp("crossed"))
    test = make_images(TESTED, "val")
    return crossed.run(*sides_of(clip, prompted), sae, compared, test, run.stage("compare-test"), CROSS), run


def masked(model, sae, pixels: torch.Tensor, keep: torch.Tensor, image_tokens_only: bool = False) -> torch.Tensor:
    """Embeddings with dense latents: keep [B, S] says which latents of an image stay."""
    with torch.no_grad():
        residual = model.residual(pixels)
        latents = torch.relu((residual - sae.b_dec) @ sae.W_enc + sae.b_enc) * keep[:, None]
        replaced = latents @ sae.W_dec + sae.b_dec
        if image_tokens_only:
            replaced[:, model.image_tokens :] = residual[:, model.image_tokens :]
        return model.embed(replaced)


def correct_counts(model, embedding: torch.Tensor, dataset, templates) -> torch.Tensor:
    """Correct images per class, each classified among the base classes or among the novel ones."""
    classifier, labels = model.text_classifier(dataset.classnames, templates), torch.from_numpy(dataset.labels)
    classes = len(dataset.classnames)
    half = -(-classes // 2)
    counts = torch.zeros(classes, dtype=torch.int64)
    for image, label in enumerate(labels.tolist()):
        group = range(half) if label < half else range(half, classes)
        scores = (embedding[image] @ classifier.T).tolist()
        counts[label] += max(group, key=lambda c: scores[c]) == label
    return counts


@pytest.mark.parametrize("keep_prompts", [False, True])
def test_the_four_cells_agree_with_dense_full_passes(clip, prompted, sae, compared, tmp_path, keep_prompts) -> None:
    test = make_images(TESTED, "val")
    options = replace(CROSS, keep_prompt_tokens=keep_prompts)
    stage = Run(tmp_path).stage("compare-test")
    result = crossed.run(*sides_of(clip, prompted), sae, compared, test, stage, options)
    labels = torch.from_numpy(test.labels)
    assert torch.equal(result.models[0].images, torch.bincount(labels, minlength=len(test.classnames)))
    for model, mine in zip((clip, prompted), result.models, strict=True):
        pixels = pixels_of(model, test)
        assert mine.rankings == ["a", "b"]
        assert mine.ks == list(KS)
        expected = {UNMODIFIED: model.embed(model.residual(pixels))}
        expected[RECONSTRUCTION] = masked(model, sae, pixels, torch.ones(TESTED, S), keep_prompts)
        for letter, counts in zip("ab", compared.class_counts, strict=True):
            rank = rank_by(counts)[labels]
            for k in KS:
                expected[Masking(letter, KEEP, k)] = masked(model, sae, pixels, (rank < k).float(), keep_prompts)
                expected[Masking(letter, ABLATE, k)] = masked(model, sae, pixels, (rank >= k).float(), keep_prompts)
        assert set(expected) == set(mine.maskings)
        for masking, embedding in expected.items():
            counts = correct_counts(model, embedding.detach(), test, ["a {}."])
            assert torch.equal(mine.correct[mine.maskings.index(masking)], counts), masking


def test_prompt_tokens_stay_or_go(prompted, sae) -> None:
    """The two ways differ, or the test above would show nothing."""
    pixels = pixels_of(prompted, make_images(3))
    kept, replaced = (masked(prompted, sae, pixels, torch.zeros(3, S), only) for only in (True, False))
    assert float((kept - replaced).abs().max()) > 1e-3


def test_statistics_do_not_see_prompt_tokens(prompted, sae, compared) -> None:
    dataset = make_images(RANKED)
    labels = torch.from_numpy(dataset.labels)
    with torch.no_grad():
        residual = prompted.residual(pixels_of(prompted, dataset))
        dense = torch.relu((residual - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert dense.shape[1] == prompted.image_tokens + 3
    image, everything = dense[:, : prompted.image_tokens], dense
    assert torch.equal(compared.counts[1], (image > 0.2).sum((0, 1)))
    assert not torch.equal(compared.counts[1], (everything > 0.2).sum((0, 1)))
    for label in range(len(dataset.classnames)):
        assert torch.equal(compared.class_counts[1, label], (image[labels == label] > 0.2).sum((0, 1)))
    torch.testing.assert_close(compared.mean_activation[1], image.double().mean((0, 1)), rtol=1e-5, atol=1e-8)


def test_a_comparison_costs_two_extractions(clip, sae, tmp_path) -> None:
    """Every image, ranked or classified, goes once through either lower tower and is encoded once for either."""
    first, under = CountingCLIP.of(clip), CountingCLIP.of(clip)
    second = make_prompted(under, make_images(1).classnames)
    passes: list[int] = []
    block = clip.model.visual.transformer.resblocks[0]
    handle = block.register_forward_hook(lambda _module, _inputs, output: passes.append(len(output)))
    counting = CountingSAE.from_tensors(sae.config, sae.state_dict())
    run, sides = Run(tmp_path), sides_of(first, second)
    try:
        comparison = compare.run(*sides, counting, run.stage("compare"), COMPARE)
        crossed.run(*sides, counting, comparison, make_images(TESTED, "val"), run.stage("compare-test"), CROSS)
    finally:
        handle.remove()
    assert first.lower == RANKED + TESTED
    assert sum(passes) == 2 * (RANKED + TESTED)
    tokens = clip.image_tokens
    assert counting.encoded == 2 * RANKED * tokens + TESTED * (tokens + tokens + 3)
    assert first.upper == RANKED + TESTED * (2 + 2 * 2 * len(KS))


def test_tables_and_report(found) -> None:
    result, run = found
    stage = run.stage("compare-test")
    accuracy, masks, recall = (stage.read_table(f"{name}.csv") for name in ("accuracy", "masks", "recall"))
    assert accuracy["group"] == ["base", "base", "novel", "novel", "harmonic mean", "harmonic mean"]
    assert list(accuracy["accuracy"][:2]) == list(result.accuracies["base"])
    variants = 2 + 2 * 2 * len(KS)
    assert len(masks["k"]) == 2 * 2 * variants
    for row, (model, group, name) in enumerate(zip(masks["model"], masks["group"], masks["variant"], strict=True)):
        mine = result.models["ab".index(model)]
        (masking,) = [v for v in mine.maskings if v.name == name]
        assert masks["accuracy"][row] == mine.accuracy(masking, result.class_groups[group])
    assert len(recall["recall"]) == 2 * variants * len(result.classnames)
    assert recall["model"] == ["a"] * (len(recall["model"]) // 2) + ["b"] * (len(recall["model"]) // 2)
    for name in ("masks_a", "masks_b", "recall_keep", "recall_ablate"):
        assert (stage.path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = build(run).read_text()
    assert "ranked by prompted" in page
    assert "Rankings across models" in page
    assert sum(int(masks["images"][row]) for row in range(0, 2 * variants, variants)) == TESTED


def test_keeping_all_is_the_reconstruction_whoever_ranked(found) -> None:
    for model in found[0].models:
        rows = [model.correct[model.maskings.index(Masking(letter, KEEP, S))] for letter in "ab"]
        full = model.correct[model.maskings.index(RECONSTRUCTION)]
        assert torch.equal(rows[0], full)
        assert torch.equal(rows[1], full)


def test_a_result_reads_back(found) -> None:
    result, run = found
    again = CrossedResult.load(run.stage("compare-test"))
    assert (again.names, again.groups, again.classnames) == (result.names, result.groups, result.classnames)
    for mine, theirs in zip(again.models, result.models, strict=True):
        assert mine.maskings == theirs.maskings
        assert torch.equal(mine.correct, theirs.correct)


def test_without_a_sweep_there_are_accuracies_alone(clip, prompted, sae, compared, found, tmp_path) -> None:
    stage = Run(tmp_path).stage("test")
    options = cross_options(COMPARE, TopKOptions(), swept=False)
    result = crossed.run(*sides_of(clip, prompted), sae, compared, make_images(TESTED, "val"), stage, options)
    assert result.accuracies == found[0].accuracies
    assert result.models[0].maskings == (UNMODIFIED, RECONSTRUCTION)
    assert not (stage.path / "masks_a.png").exists()


class Interrupting(ShapesWorld):
    """The same pictures, but the user presses Ctrl-C at the ninth."""

    def sample(self, i: int) -> Sample:
        if i == 8:
            raise KeyboardInterrupt
        return super().sample(i)


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_to_the_same_counts(clip, prompted, sae, compared, found, tmp_path) -> None:
    stage, sides, options = Run(tmp_path).stage("test"), sides_of(clip, prompted), replace(CROSS, save_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        crossed.run(*sides, sae, compared, Interrupting("val", n=TESTED), stage, options)
    assert int(stage.load_tensors("fold")["position"]) == 8
    result = crossed.run(*sides, sae, compared, make_images(TESTED, "val"), stage, options)
    for mine, theirs in zip(result.models, found[0].models, strict=True):
        assert torch.equal(mine.correct, theirs.correct)


@pytest.mark.parametrize("change", ["sae", "model", "unlabelled", "classes"])
def test_what_does_not_belong_to_the_comparison_is_refused(clip, prompted, sae, compared, tmp_path, change) -> None:
    stage, test = Run(tmp_path).stage("test"), make_images(3, "val")
    model, reader, comparison = prompted, sae, compared
    if change == "sae":
        reader, message = make_sae(clip.width, seed=1), "side A is of another sae.*compare --overwrite"
    elif change == "model":
        model, message = make_prompted(clip, test.classnames, seed=1), "side B is of another clip"
    elif change == "unlabelled":
        comparison, message = replace(compared, class_counts=None, classnames=None), "without labels"
    else:
        comparison, message = replace(compared, classnames=compared.classnames[::-1]), "same classes in the same order"
    with pytest.raises(ValueError, match=message):
        crossed.run(*sides_of(clip, model), reader, comparison, test, stage, CROSS)
    assert not stage.path.exists()


def test_accuracies_of_the_comparison_are_within_groups_too(clip, prompted, compared) -> None:
    dataset = make_images(RANKED)
    half = -(-len(dataset.classnames) // 2)
    for side, model in enumerate((clip, prompted)):
        with torch.no_grad():
            embedding = model.embed(model.residual(pixels_of(model, dataset)))
        counts = correct_counts(model, embedding, dataset, ["a {}."]).numpy()
        images = np.bincount(dataset.labels, minlength=len(counts))
        assert compared.accuracies["base"][side] == pytest.approx(counts[:half].sum() / images[:half].sum())
        assert compared.accuracies["novel"][side] == pytest.approx(counts[half:].sum() / images[half:].sum())


def test_evaluating_on_the_ranked_images_is_said(clip, prompted, sae, compared, tmp_path, capsys) -> None:
    stage = Run(tmp_path).stage("test")
    options = CrossOptions(ks=(1,), templates=("a {}.",))
    crossed.run(*sides_of(clip, prompted), sae, compared, make_images(RANKED), stage, options)
    assert "Evaluated on the images that were ranked" in capsys.readouterr().err
    assert "Evaluated on the images that were ranked" in stage.load_json("section")["html"]

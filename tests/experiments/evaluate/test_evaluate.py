"""Evaluate: right against dense computations, the same bits after a stop, honest without labels or concepts."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from patchsae import words
from patchsae.data import Sample, open_images
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run, Stage
from patchsae.experiments import evaluate
from patchsae.experiments.evaluate.concepts import ConceptCounts
from patchsae.experiments.evaluate.contrastive import contrastive_loss
from patchsae.experiments.evaluate.experiment import ImageReader, raw_latents
from patchsae.experiments.evaluate.result import CLS_ONLY, MASKINGS, EvaluateResult
from patchsae.experiments.mask.embeddings import RECONSTRUCTION, UNMODIFIED
from patchsae.models import prompts
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from tests.experiments.evaluate.evaluate_law import OPTIONS, N, evaluated
from tests.experiments.worlds import S, make_images, make_sae, pixels_of
from tests.parallel.pool import Pool


@pytest.fixture(scope="module")
def stage(clip, sae, tmp_path_factory) -> Stage:
    stage = Run(tmp_path_factory.mktemp("run")).stage("evaluate")
    evaluate.run(clip, sae, make_images(N, "test"), stage, OPTIONS)
    return stage


def identity(width: int) -> SparseAutoencoder:
    """An autoencoder of 2 D latents that reconstructs everything: relu(x) and relu(-x)."""
    eye = torch.eye(width)
    return SparseAutoencoder.from_tensors(
        SAEConfig(width, 2 * width),
        {
            "W_enc": torch.cat([eye, -eye], 1),
            "b_enc": torch.zeros(2 * width),
            "W_dec": torch.cat([eye, -eye]),
            "b_dec": torch.zeros(width),
        },
    )


@torch.no_grad()
def test_the_figures_are_those_of_a_dense_computation(clip, sae, stage) -> None:
    result, dataset = EvaluateResult.load(stage), make_images(N, "test")
    residual, labels = clip.residual(pixels_of(clip, dataset)), torch.from_numpy(dataset.labels)
    latents = torch.relu((residual - sae.b_dec) @ sae.W_enc + sae.b_enc)
    y = latents @ sae.W_dec + sae.b_dec
    x = residual.flatten(0, 1).double()
    variance = (x - x.mean(0)).square().sum()
    expected = 1 - float((y.flatten(0, 1) - x).square().sum() / variance)
    assert result.quality.all.explained_variance == pytest.approx(expected, rel=1e-5)
    assert result.quality.all.tokens == N * clip.image_tokens
    assert torch.equal(result.quality.fired, (latents > 0).sum((0, 1)))
    embeddings = {
        UNMODIFIED: clip.embed(residual),
        RECONSTRUCTION: clip.embed(y),
        CLS_ONLY: clip.embed(torch.cat([y[:, :1], residual[:, 1:]], 1)),
    }
    weights = clip.text_classifier(dataset.classnames, ["a {}."])
    captions = clip.text_classifier(dataset.classnames, [prompts.DEFAULT_TEMPLATE])
    order = ImageReader(clip, dataset, OPTIONS).order
    assert sorted(order.tolist()) == list(range(N))
    assert result.contrastive.batches == N // 8
    for masking in MASKINGS:
        right = (embeddings[masking] @ weights.T).argmax(1) == labels
        assert result.accuracy(masking) == pytest.approx(float(right.double().mean()))
        losses = [
            float(contrastive_loss(embeddings[masking][part], captions[labels[part]], clip.logit_scale))
            for part in order[: N // 8 * 8].split(8)
        ]
        assert result.contrastive.losses[masking] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_concept_scores_are_those_of_all_latents_at_once(clip, sae, stage) -> None:
    result, dataset = EvaluateResult.load(stage), make_images(N, "test")
    concepts = ImageReader(clip, dataset, OPTIONS).concepts
    with torch.no_grad():
        residual = clip.residual(pixels_of(clip, dataset))
        readings = {"concepts": sae.encode(residual), "raw_concepts": raw_latents(residual, sae.b_dec)}
    present, masks = concepts.present(range(N)), concepts.masks(range(N))
    for name, latents in readings.items():
        found = getattr(result, name)
        counts = ConceptCounts(concepts.names, latents.shape[1], clip.image_tokens)
        counts.update(latents, torch.arange(N), present, masks)
        expected = counts.finalize()
        assert found.names == expected.names
        for figure in ("latent", "precision", "iou", "threshold", "random_precision"):
            torch.testing.assert_close(getattr(found, figure), getattr(expected, figure), equal_nan=True)


def test_raw_latents_are_both_signs_of_every_dimension() -> None:
    residual, centre = torch.randn(3, 4, 5), torch.randn(5)
    dense = raw_latents(residual, centre).to_dense()
    torch.testing.assert_close(dense[:, :5] - dense[:, 5:] + centre, residual.flatten(0, 1))
    assert bool((dense >= 0).all())


def test_a_perfect_autoencoder_changes_nothing(clip, tmp_path) -> None:
    images = make_images(16, "test")
    result = evaluate.run(clip, identity(clip.width), images, Run(tmp_path).stage("evaluate"), OPTIONS)
    assert result.quality.all.explained_variance == pytest.approx(1, abs=1e-9)
    assert result.quality.all.cosine == pytest.approx(1)
    assert result.quality.all.l0 == clip.width
    for masking in (RECONSTRUCTION, CLS_ONLY):
        assert result.accuracy(masking) == result.accuracy(UNMODIFIED)
        assert result.contrastive.losses[masking] == pytest.approx(result.contrastive.losses[UNMODIFIED], rel=1e-6)


def test_tables_and_figures_say_the_same(stage) -> None:
    result, figures = EvaluateResult.load(stage), stage.load_json("evaluation")
    assert figures == result.figures
    assert figures["dense"] == int((result.quality.frequency > 0.1).sum())
    assert figures["latents"] == S
    tokens = stage.read_table("tokens.csv")
    assert tokens["group"] == ["all", "cls", "patches"]
    assert tokens["explained_variance"][0] == pytest.approx(figures["explained_variance"])
    rows = stage.read_table("classification.csv")
    assert rows["variant"] == ["unmodified", "reconstruction", "cls reconstructed"]
    assert rows["zero_shot_accuracy"][1] == pytest.approx(figures["accuracy_reconstruction"])
    assert len(stage.read_table("concepts.csv")["precision"]) == len(result.concepts.names)
    assert len(stage.read_table("latents.parquet")["frequency"]) == S
    html = stage.load_json("section")["html"]
    assert "What CLIP still sees" in html
    for what, masking in (("unmodified", "unmodified"), ("reconstructed", "reconstruction")):
        share = words.percent(figures[f"accuracy_{masking}"])
        assert f'<dt>accuracy, {what}</dt><dd title="{share}">{share}</dd>' in html
    assert "Intersection over union" in html


class Interrupting(ShapesWorld):
    """The same pictures, but the user presses Ctrl-C while one is drawn."""

    def sample(self, i: int) -> Sample:
        if i == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sample(i)


def test_a_stopped_evaluation_goes_on_to_the_same_bits(clip, sae, stage, tmp_path) -> None:
    broken, options = Run(tmp_path).stage("evaluate"), replace(OPTIONS, save_minutes=60.0)
    with pytest.raises(SystemExit):
        evaluate.run(clip, sae, Interrupting("test", n=N), broken, options)
    assert 0 < int(broken.load_tensors("fold")["position"]) < N
    evaluate.run(clip, sae, make_images(N, "test"), broken, options)
    assert not (broken.path / "fold.safetensors").exists()
    for name in ("counts.safetensors", "evaluation.json", "result.json", "concepts.csv"):
        assert (broken.path / name).read_bytes() == (stage.path / name).read_bytes(), name


@pytest.mark.slow  # it starts processes of its own
def test_two_processes_find_what_one_finds(clip_folder, stage, tmp_path) -> None:
    pool = Pool(2)
    try:
        pool.run(evaluated, 2, 1, clip_folder, tmp_path)
    finally:
        pool.close()
    shared = Run(tmp_path).stage("evaluate")
    assert (shared.path / "counts.safetensors").read_bytes() == (stage.path / "counts.safetensors").read_bytes()
    assert shared.load_json("evaluation") == pytest.approx(stage.load_json("evaluation"), rel=1e-12)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Six images in classes ("classes"), and without labels ("plain")."""
    world = make_images(6)
    for i in range(6):
        for folder in (tmp_path / "classes" / "ab"[i % 2], tmp_path / "plain"):
            folder.mkdir(parents=True, exist_ok=True)
            world.sample(i).image.save(folder / f"{i}.png")
    return tmp_path


def test_images_without_labels_have_what_needs_none(clip, sae, folders) -> None:
    stage = Run(folders / "run").stage("evaluate")
    result = evaluate.run(clip, sae, open_images(str(folders / "plain")), stage, OPTIONS)
    assert result.quality.all.tokens == 6 * clip.image_tokens
    assert (result.contrastive, result.concepts, result.raw_concepts) == (None, None, None)
    assert result.accuracy(UNMODIFIED) is None
    assert result.figures["accuracy_unmodified"] is None
    html = stage.load_json("section")["html"]
    assert "What CLIP still sees" not in html
    assert "Concepts" not in html


def test_classes_are_concepts_without_masks(clip, sae, folders) -> None:
    stage = Run(folders / "run").stage("evaluate")
    result = evaluate.run(clip, sae, open_images(str(folders / "classes")), stage, OPTIONS)
    assert result.concepts.names == (("class", "a"), ("class", "b"))
    assert result.figures["concept_iou"] is None
    assert result.figures["concept_precision"] is not None
    assert result.batch_size == 6
    assert result.contrastive.batches == 1
    assert "Intersection over union" not in stage.load_json("section")["html"]


def test_a_batch_with_a_bad_image_has_no_contrastive_loss(clip: SplitCLIP, sae, folders) -> None:
    broken = folders / "classes" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    stage = Run(folders / "run").stage("evaluate")
    options = replace(OPTIONS, on_bad_image="skip")
    result = evaluate.run(clip, sae, open_images(str(folders / "classes")), stage, options)
    assert result.contrastive is None
    assert int(result.classified.sum()) == 5
    assert "3.png" in stage.load_json("section")["html"]
    assert "No batch was whole" in stage.load_json("section")["html"]


def test_an_autoencoder_of_another_width_is_refused(clip, tmp_path) -> None:
    with pytest.raises(ValueError, match="width 16"):
        evaluate.run(clip, make_sae(16), make_images(2), Run(tmp_path).stage("evaluate"))

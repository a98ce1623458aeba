"""The masking experiment: accuracies against full forward passes, named rows, refusals, resuming."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benches.naive_masking import naive_sweep
from patchsae.data import Sample
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import Run
from patchsae.experiments import classes, extract, mask
from patchsae.experiments.classes import Rankings
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.mask import MaskResult
from patchsae.experiments.mask.embeddings import ABLATE, KEEP, RECONSTRUCTION, UNMODIFIED, Masking
from patchsae.experiments.mask.options import MaskOptions
from patchsae.experiments.mask.recall import RecallCounts
from patchsae.experiments.zero_shot import ZeroShot
from tests.experiments.worlds import S, make_images, make_prompted, make_sae, pixels_of

ROOT = Path(__file__).parents[3]
OPTIONS = MaskOptions(batch_size=4, ks=(1, 10, 1000), templates=("a {}.", "the {}."), save_minutes=0)
EVALUATED = 11
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def rankings(clip, sae, tmp_path_factory) -> Rankings:
    run = Run(tmp_path_factory.mktemp("ranked"))
    return classes.run(
        extract.run(clip, sae, make_images(), run.stage("extract"), ExtractOptions(show_latents=0)),
        run.stage("classes"),
    )


@pytest.fixture(scope="module")
def swept(clip, sae, rankings, tmp_path_factory) -> tuple[MaskResult, Run]:
    run = Run(tmp_path_factory.mktemp("swept"))
    result = mask.run(clip, sae, make_images(EVALUATED, "val"), rankings, run.stage("mask"), OPTIONS)
    return result, run


def test_counts_equal_those_of_full_forward_passes(clip, sae, rankings, swept) -> None:
    result, _ = swept
    dataset = make_images(EVALUATED, "val")
    labels = torch.from_numpy(dataset.labels)
    naive = naive_sweep(
        clip.model, clip.layer, sae.state_dict(), pixels_of(clip, dataset), labels, rankings.ranks, (1, 10, S)
    )
    classifier = clip.text_classifier(dataset.classnames, list(OPTIONS.templates))
    assert set(result.maskings) == naive.keys()
    for masking, embedding in naive.items():
        right = (embedding @ classifier.T).argmax(1) == labels
        expected = torch.bincount(labels[right], minlength=len(dataset.classnames))
        assert torch.equal(result.correct[result.maskings.index(masking)], expected), masking
    assert torch.equal(result.images, torch.bincount(labels, minlength=len(dataset.classnames)))


def test_tables_have_named_rows(swept) -> None:
    result, run = swept
    stage = run.stage("mask")
    accuracy = stage.read_table("accuracy.csv")
    assert accuracy["variant"][:3] == ["unmodified", "reconstruction", "keep class top 1"]
    assert len(accuracy["variant"]) == len(set(accuracy["variant"])) == 2 + 3 * 2 * 3
    for name, value in zip(accuracy["variant"], accuracy["accuracy"], strict=True):
        (masking,) = [v for v in result.maskings if v.name == name]
        assert value == result.accuracy(masking)
    assert (stage.path / "sweep.png").read_bytes().startswith(PNG)
    recall = stage.read_table("recall.csv")
    assert len(recall["variant"]) == len(accuracy["variant"]) * len(result.classnames)
    assert recall["class"][: len(result.classnames)] == list(result.classnames)
    row = recall["label"].tolist().index(2)
    n = int(result.images[2])
    assert recall["recall"][row] == (int(result.correct[0, 2]) / n if n else None)


def test_keeping_all_classifies_as_the_reconstruction_does(swept) -> None:
    result, _ = swept
    for name in ("class", "dataset", "random"):
        row = result.correct[result.maskings.index(Masking(name, KEEP, S))]
        assert torch.equal(row, result.correct[result.maskings.index(RECONSTRUCTION)])
    gone = {result.accuracy(Masking(name, ABLATE, S)) for name in ("class", "dataset", "random")}
    assert len(gone) == 1


def test_a_class_without_images_has_no_recall() -> None:
    result = MaskResult((UNMODIFIED,), ("a", "b"), torch.tensor([[1, 0]]), torch.tensor([2, 0]))
    assert result.recall(UNMODIFIED) == [0.5, None]
    assert result.accuracy(UNMODIFIED) == 0.5


class Interrupting(ShapesWorld):
    """The same pictures, but the user presses Ctrl-C at the ninth."""

    def sample(self, i: int) -> Sample:
        if i == 8:
            raise KeyboardInterrupt
        return super().sample(i)


def test_a_stopped_sweep_goes_on_to_the_same_counts(clip, sae, rankings, swept, tmp_path) -> None:
    expected, _ = swept
    stage = Run(tmp_path).stage("mask")
    with pytest.raises(KeyboardInterrupt):
        mask.run(clip, sae, Interrupting("val", n=EVALUATED), rankings, stage, OPTIONS)
    assert int(stage.load_tensors("fold")["position"]) == 8
    result = mask.run(clip, sae, make_images(EVALUATED, "val"), rankings, stage, OPTIONS)
    assert torch.equal(result.correct, expected.correct)


def test_other_classes_than_the_ranked_ones_are_refused(clip, sae, rankings, tmp_path) -> None:
    others = replace(rankings, classnames=rankings.classnames[::-1])
    with pytest.raises(ValueError, match="same classes in the same order"):
        mask.run(clip, sae, make_images(3), others, Run(tmp_path).stage("mask"), OPTIONS)


@pytest.mark.parametrize("change", ["sae", "clip", "unknown"])
def test_rankings_of_other_models_are_refused(clip, other_clip, sae, rankings, tmp_path, change) -> None:
    ranked = replace(rankings, made_from={}) if change == "unknown" else rankings
    now = (other_clip, sae) if change == "clip" else (clip, make_sae(clip.width, seed=1) if change == "sae" else sae)
    part = "clip" if change == "clip" else "sae"
    stage = Run(tmp_path).stage("mask")
    message = f"another {part} .*`patchsae extract --overwrite`, then `patchsae classes --overwrite`"
    with pytest.raises(ValueError, match=message):
        mask.run(*now, make_images(3, "val"), ranked, stage, OPTIONS)
    assert not stage.path.exists()


@pytest.mark.parametrize("same", [True, False])
def test_evaluating_on_the_ranked_images_is_said(clip, sae, tmp_path, capsys, same) -> None:
    run = Run(tmp_path)
    extraction = extract.run(clip, sae, make_images(6), run.stage("extract"), ExtractOptions(show_latents=0))
    classes.run(extraction, run.stage("classes"))
    capsys.readouterr()
    dataset = make_images(6, "train" if same else "val")
    mask.run(clip, sae, dataset, Rankings.load(run.stage("classes")), run.stage("mask"), OPTIONS)
    sentence = "Evaluated on the images that were ranked"
    assert (sentence in capsys.readouterr().err) == same
    assert (sentence in run.stage("mask").load_json("section")["html"]) == same


def test_templates_may_be_named(clip, sae, rankings, tmp_path) -> None:
    run, dataset = Run(tmp_path), make_images(5, "val")
    named, written = (
        mask.run(clip, sae, dataset, rankings, run.stage(name), replace(OPTIONS, templates=templates))
        for name, templates in (("named", ("DTD",)), ("written", ("{} texture.",)))
    )
    assert torch.equal(named.correct, written.correct)
    assert "{} texture." in run.stage("named").load_json("section")["html"]
    with pytest.raises(ValueError, match="'pet'"):
        mask.run(clip, sae, dataset, rankings, run.stage("wrong"), replace(OPTIONS, templates=("pet",)))
    assert not run.stage("wrong").path.exists()


def test_an_image_without_label_is_refused_by_name(clip, sae, rankings, tmp_path) -> None:
    dataset = make_images(3)
    dataset.labels[1] = -1
    with pytest.raises(ValueError, match=dataset.ids(1)):
        mask.run(clip, sae, dataset, rankings, Run(tmp_path).stage("mask"), OPTIONS)


def test_an_unknown_ranking_is_refused(clip, sae, rankings, tmp_path) -> None:
    with pytest.raises(ValueError, match="'size'.*class, dataset, random"):
        mask.run(clip, sae, make_images(3), rankings, Run(tmp_path).stage("mask"), replace(OPTIONS, rankings=("size",)))


def test_counts_of_other_maskings_do_not_merge() -> None:
    first, second = (RecallCounts([masking], ZeroShot(torch.eye(2))) for masking in (UNMODIFIED, RECONSTRUCTION))
    with pytest.raises(ValueError, match="maskings"):
        first.merge(second)


def test_merged_counts_are_those_of_one_pass() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    embeddings = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    whole, first, second = (RecallCounts([UNMODIFIED], ZeroShot(torch.eye(2))) for _ in range(3))
    whole.update({UNMODIFIED: embeddings}, labels)
    first.update({UNMODIFIED: embeddings[:1]}, labels[:1])
    second.update({UNMODIFIED: embeddings[1:]}, labels[1:])
    second.merge(first)
    assert whole.finalize()[0].tolist() == second.finalize()[0].tolist() == [[1, 1]]
    assert second.finalize()[1].tolist() == [2, 2]


MEASURE = """
import resource
from benches.masking import ours
from benches.vit import build_case
case = build_case(images=8)
with open("/proc/self/statm") as statm:
    loaded = int(statm.read().split()[1]) * resource.getpagesize()
ours(case)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded)
"""


@pytest.mark.slow
def test_peak_memory_of_eight_vit_b_16_images() -> None:
    """Above the loaded weights; the peak includes setting the case up."""
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 3e9


def test_an_adapted_clip_is_ranked_and_masked_like_any_other(clip, sae, tmp_path) -> None:
    run, dataset = Run(tmp_path), make_images(6, "val")
    adapted = make_prompted(clip, dataset.classnames)
    extraction = extract.run(adapted, sae, make_images(8), run.stage("extract"), ExtractOptions(show_latents=2))
    ranked = classes.run(extraction, run.stage("classes"))
    result = mask.run(adapted, sae, dataset, ranked, run.stage("mask"), OPTIONS)
    assert extraction.made_from["clip"]["adapter"] == "vpt"
    classifier = adapted.text_classifier(dataset.classnames, list(OPTIONS.templates))
    with torch.no_grad():
        embedding = adapted.embed(adapted.residual(pixels_of(adapted, dataset)))
    right = (embedding @ classifier.T).argmax(1) == torch.from_numpy(dataset.labels)
    assert result.accuracy(UNMODIFIED) == right.double().mean()
    with pytest.raises(ValueError, match="another clip"):
        mask.run(clip, sae, dataset, ranked, run.stage("other"), OPTIONS)

"""Comparing two models on one dataset, and one model on two datasets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchsae.data import open_images
from patchsae.disk.runs import Run
from patchsae.experiments import compare
from patchsae.experiments.accuracies import improvement
from patchsae.experiments.compare import Comparison, Side
from patchsae.experiments.compare.moved import moved
from patchsae.experiments.compare.options import CompareOptions
from patchsae.experiments.compare.pairing import ByClass
from patchsae.report import build
from tests.experiments.worlds import S, dense_latents, make_images, pixels_of

N = 14
OPTIONS = CompareOptions(batch_size=4, noisy_above=10, show_latents=4, show_images=2, templates=("a {}.",))


@pytest.fixture(scope="module")
def two_models(clip, other_clip, sae, tmp_path_factory) -> tuple[Comparison, Run]:
    run = Run(tmp_path_factory.mktemp("models"))
    first, second = (Side(name, model, make_images(N)) for name, model in (("before", clip), ("after", other_clip)))
    return compare.run(first, second, sae, run.stage("compare"), OPTIONS), run


def test_two_models_agree_with_a_dense_computation(clip, other_clip, sae, two_models) -> None:
    result, _ = two_models
    dataset = make_images(N)
    labels = torch.from_numpy(dataset.labels)
    means, right = [], []
    for side, model in enumerate((clip, other_clip)):
        pixels = pixels_of(model, dataset)
        dense = dense_latents(model, sae, pixels)
        means.append(dense.double().mean(1))
        torch.testing.assert_close(result.mean_activation[side], means[side].mean(0), rtol=1e-5, atol=1e-8)
        assert torch.equal(result.counts[side], (dense > 0.2).sum((0, 1)))
        for label in range(len(dataset.classnames)):
            assert torch.equal(result.class_counts[side, label], (dense[labels == label] > 0.2).sum((0, 1)))
        classifier = model.text_classifier(dataset.classnames, ["a {}."])
        right.append((model.embed(model.residual(pixels)) @ classifier.T).argmax(1) == labels)
        assert result.accuracies["all"][side] == pytest.approx(right[side].double().mean().item())
    a, b = means
    torch.testing.assert_close(result.pairs.shift, (a - b).abs().sum(1) / (a + b).sum(1), rtol=1e-5, atol=1e-8)
    for i in range(N):
        tops = [set(side[i].topk(10).indices.tolist()) for side in means]
        assert [set(row) for row in result.pairs.top[i].tolist()] == tops
    assert result.pairs.positions.tolist() == [[i, i] for i in range(N)]
    assert torch.equal(result.pairs.correct, torch.stack(right, dim=1))


def test_a_model_against_itself_changes_nothing(clip, sae, tmp_path) -> None:
    side = Side("same", clip, make_images(6))
    result = compare.run(side, side, sae, Run(tmp_path).stage("compare"), OPTIONS)
    assert result.pairs.shift.tolist() == [0.0] * 6
    assert result.shift.tolist() == [0.0] * S
    columns = result.class_columns()
    assert sum(columns["only_a"]) == sum(columns["only_b"]) == 0
    assert moved(result, noisy_above=10, n=5) == ([], [])
    assert improvement(*result.accuracies["all"]) == 0.0


def test_tables_and_report(two_models) -> None:
    result, run = two_models
    stage = run.stage("compare")
    images, per_class = stage.read_table("images.parquet"), stage.read_table("classes.csv")
    assert (stage.path / "shift.png").read_bytes().startswith(b"\x89PNG")
    assert images["id_a"] == images["id_b"] == [make_images(N).ids(i) for i in range(N)]
    assert (np.asarray(images["shared"]) + np.asarray(images["only_a"]) <= 10).all()
    assert [len(text.split()) for text in images["shared_latents"]] == list(images["shared"])
    assert per_class["class"] == list(result.classnames)
    assert sum(per_class["images"]) == N
    assert stage.read_table("accuracy.csv")["name"] == ["before", "after"]
    latents = stage.read_table("latents.parquet")
    np.testing.assert_array_equal(latents["shift"], latents["mean_b"] - latents["mean_a"])
    gain, lose = moved(result, noisy_above=10, n=3)
    assert latents["shift"][gain[0]] == latents["shift"].max() > 0
    assert latents["shift"][lose[0]] == latents["shift"].min() < 0
    assert "after" in build(run).read_text()


def test_what_moved_says_how_many_noisy_latents_are_left_out(clip, other_clip, sae, tmp_path) -> None:
    """All of them, with a young autoencoder; then "none" would be false."""
    stage = Run(tmp_path).stage("compare")
    first, second = Side("before", clip, make_images(6)), Side("after", other_clip, make_images(6))
    result = compare.run(first, second, sae, stage, replace(OPTIONS, noisy_above=0.0))
    left_out = int((result.noise > 0).any(dim=0).sum())
    assert left_out > 1
    html = stage.load_json("section")["html"]
    assert html.count(f"None. {left_out} noisy latents (mean activation above 0) are left out; --noisy-above inf") == 4


def test_an_unknown_name_of_templates_is_refused_before_the_stage_begins(clip, sae, tmp_path) -> None:
    stage, side = Run(tmp_path).stage("compare"), Side("same", clip, make_images(4))
    with pytest.raises(ValueError, match="'pet'"):
        compare.run(side, side, sae, stage, replace(OPTIONS, templates=("pet",)))
    assert not stage.path.exists()


def test_two_datasets_are_paired_by_class(clip, sae, tmp_path) -> None:
    first, second = make_images(20), make_images(16, seed=7)
    result = compare.run(
        Side("one", clip, first), Side("two", clip, second), sae, Run(tmp_path).stage("compare"), OPTIONS
    )
    positions = result.pairs.positions.numpy()
    assert (first.labels[positions[:, 0]] == second.labels[positions[:, 1]]).all()
    assert len(set(positions[:, 0])) == len(set(positions[:, 1])) == len(positions)
    fewer = np.minimum(np.bincount(first.labels, minlength=9), np.bincount(second.labels, minlength=9))
    assert len(positions) == fewer.sum()
    means = dense_latents(clip, sae, pixels_of(clip, second)).double().mean(1)[positions[:, 1]]
    torch.testing.assert_close(result.mean_activation[1], means.mean(0), rtol=1e-5, atol=1e-8)
    assert set(result.top_images[1].flatten().tolist()) <= {-1, *positions[:, 1].tolist()}


def test_a_pair_with_a_bad_image_is_left_out_whole(clip, sae, tmp_path) -> None:
    for side in ("one", "two"):
        for i in range(4):
            folder = tmp_path / side / ("circle", "square")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            make_images(8).sample(i + 4 * (side == "two")).image.save(folder / f"{i}.png")
    (tmp_path / "two" / "square" / "1.png").write_bytes(b"not an image")
    first, second = (open_images(str(tmp_path / side)) for side in ("one", "two"))
    assert len(ByClass(first, second)) == 4
    options = CompareOptions(batch_size=3, on_bad_image="skip", noisy_above=10, show_images=1, templates=("a {}.",))
    result = compare.run(
        Side("one", clip, first), Side("two", clip, second), sae, Run(tmp_path / "run").stage("compare"), options
    )
    assert len(result.pairs.labels) == 3
    assert result.class_columns()["images"] == [2, 1]


def test_unlabelled_images_are_compared_without_classes(clip, other_clip, sae, tmp_path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for i in range(3):
        make_images(3).sample(i).image.save(folder / f"{i}.png")
    images = open_images(str(folder))
    first, second = (Side(name, model, images) for name, model in (("a", clip), ("b", other_clip)))
    result = compare.run(first, second, sae, Run(tmp_path / "run").stage("compare"), OPTIONS)
    assert result.accuracies == {}
    assert len(result.pairs.shift) == 3


def test_datasets_of_other_classes_are_refused(clip, sae, tmp_path) -> None:
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    make_images(1).sample(0).image.save(folder / "0.png")
    other = open_images(str(tmp_path / "images"))
    with pytest.raises(ValueError, match="same classes"):
        compare.run(
            Side("a", clip, make_images(3)),
            Side("b", clip, other),
            sae,
            Run(tmp_path / "run").stage("compare"),
            OPTIONS,
        )

"""Explain: the right latents, the right patch, pictures that are there, with and without an extraction."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from patchsae.experiments import explain, extract
from patchsae.experiments.config import ExplainOptions, ExtractOptions
from patchsae.experiments.explain import References, token_of
from patchsae.experiments.pictures import picture_of
from patchsae.runs import Run
from tests.experiments.worlds import dense_latents, make_images, make_sae, pixels_of

GRID = (4, 4)


@pytest.fixture
def images() -> dict[str, Image.Image]:
    dataset = make_images(2, "val")
    return {dataset.ids(i): dataset.sample(i).image for i in range(2)}


@pytest.fixture(scope="module")
def references(clip, sae, tmp_path_factory) -> References:
    dataset = make_images()
    stage = Run(tmp_path_factory.mktemp("extracted")).stage("extract")
    return References(extract.run(clip, sae, dataset, stage, ExtractOptions(show_latents=0)), dataset)


def test_the_top_latents_of_an_image_are_those_of_the_token_means(clip, sae, images) -> None:
    dense = dense_latents(clip, sae, pixels_of(clip, make_images(2, "val")))
    for one, image in zip(explain.explain(clip, sae, images, ExplainOptions(show_latents=4)), dense, strict=True):
        values, latents = image.mean(0).topk(4)
        assert list(one.latents) == latents.tolist()
        torch.testing.assert_close(torch.tensor(one.values), values)
        for latent, where in zip(one.latents, one.activations, strict=True):
            torch.testing.assert_close(torch.from_numpy(where.grid), image[1:, latent].reshape(GRID))
            assert where.cls == pytest.approx(float(image[0, latent]), abs=1e-6)


@pytest.mark.parametrize("patch", [(0, 0), (3, 3), (1, 2)])
def test_the_top_latents_of_a_patch_are_those_of_its_token(clip, sae, images, patch) -> None:
    dense = dense_latents(clip, sae, pixels_of(clip, make_images(2, "val")))
    options = ExplainOptions(patch=patch, show_latents=3)
    for one, image in zip(explain.explain(clip, sae, images, options), dense, strict=True):
        assert list(one.latents) == image[1 + 4 * patch[0] + patch[1]].topk(3).indices.tolist()


@pytest.mark.parametrize("patch", [(4, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_patch_outside_the_grid_is_refused(patch) -> None:
    with pytest.raises(ValueError, match="4 x 4 grid"):
        token_of(patch, GRID)


def test_noisy_latents_are_left_out_where_they_are_known(clip, sae, images, references) -> None:
    mean = references.extraction.mean_activation
    options = ExplainOptions(noisy_above=float(mean[mean > 0].median()), show_latents=96)
    for one in explain.explain(clip, sae, images, options, references.extraction):
        assert one.latents
        assert bool((mean[list(one.latents)] <= options.noisy_above).all())


def test_with_references(clip, sae, images, references, tmp_path, capsys) -> None:
    stage = Run(tmp_path).stage("explain")
    options = ExplainOptions(noisy_above=10, show_latents=3, show_images=2)
    explained = explain.run(clip, sae, images, stage, options, references=references)
    printed = capsys.readouterr().out
    table = stage.read_table("explain.csv")
    assert table["image"] == [name for name in images for _ in range(3)]
    for one in explained:
        assert one.name in printed
        for latent in one.latents:
            assert f"latent {latent:>6}" in printed
    with Image.open(stage.path / "image-001.png") as picture:
        assert picture.size == (4 * 132 - 4, 3 * 132 - 4)
    html = stage.load_json("section")["html"]
    assert html.count("this image") >= 6
    assert "mostly" in printed


def test_without_references(clip, sae, images, tmp_path, capsys) -> None:
    stage = Run(tmp_path).stage("explain")
    explain.run(clip, sae, images, stage, ExplainOptions(show_latents=2))
    assert "mostly" not in capsys.readouterr().out
    with Image.open(stage.path / "image-002.png") as picture:
        assert picture.size == (2 * 132 - 4, 2 * 132 - 4)


def test_the_picture_is_what_the_model_saw(clip) -> None:
    image = make_images(1).sample(0).image.resize((clip.image_size[1], clip.image_size[0]))
    seen = picture_of(clip, clip.preprocess(image))
    assert seen.size == image.size
    assert list(seen.tobytes()) == list(image.tobytes())


@pytest.mark.parametrize("change", ["sae", "clip", "images"])
def test_references_of_other_models_or_images_are_refused(
    clip, other_clip, sae, images, references, tmp_path, change
) -> None:
    model = other_clip if change == "clip" else clip
    autoencoder = make_sae(clip.width, seed=1) if change == "sae" else sae
    stale = References(references.extraction, make_images(5)) if change == "images" else references
    stage = Run(tmp_path).stage("explain")
    message = r"extracted from 23 images" if change == "images" else f"another {change}"
    with pytest.raises(ValueError, match=f"{message}.*`patchsae extract --overwrite`"):
        explain.run(model, autoencoder, images, stage, references=stale)
    assert not stage.path.exists()


def test_no_images_and_a_foreign_extraction_are_refused(clip, sae, images, references, tmp_path) -> None:
    stage = Run(tmp_path).stage("explain")
    with pytest.raises(ValueError, match="images is empty"):
        explain.run(clip, sae, {}, stage)
    other = make_sae(clip.width, latents=8)
    with pytest.raises(ValueError, match="d_sae was 96, now 8"):
        explain.run(clip, other, images, stage, references=references)

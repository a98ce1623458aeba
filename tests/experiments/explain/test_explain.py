"""Explain: the right latents, the right patch, pictures that are there, with and without an extraction."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from patchsae.disk.runs import Run
from patchsae.experiments import explain, extract
from patchsae.experiments.explain import References
from patchsae.experiments.explain.experiment import explain as explain_images
from patchsae.experiments.explain.experiment import table_lines, token_of
from patchsae.experiments.explain.options import ExplainOptions
from patchsae.experiments.explain.picture import explained_picture
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.pictures import Seen, picture_of, tiles_of
from patchsae.report import figures
from patchsae.words import number
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
    for one, image in zip(explain_images(clip, sae, images, ExplainOptions(show_latents=4)), dense, strict=True):
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
    for one, image in zip(explain_images(clip, sae, images, options), dense, strict=True):
        assert list(one.latents) == image[1 + 4 * patch[0] + patch[1]].topk(3).indices.tolist()


@pytest.mark.parametrize("patch", [(4, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_patch_outside_the_grid_is_refused(patch) -> None:
    with pytest.raises(ValueError, match="4 x 4 grid"):
        token_of(patch, GRID)


def test_the_strongest_are_shown_unless_noisy_ones_are_asked_to_be_left_out(clip, sae, images, references) -> None:
    extraction = references.extraction
    everything = explain_images(clip, sae, images, ExplainOptions(show_latents=96))
    assert [one.latents for one in explain_images(clip, sae, images, ExplainOptions(show_latents=96), extraction)] == [
        one.latents for one in everything
    ]
    mean = extraction.mean_activation
    options = ExplainOptions(noisy_above=float(mean[mean > 0].median()), show_latents=96)
    quiet = explain_images(clip, sae, images, options, extraction)
    for one, whole in zip(quiet, everything, strict=True):
        assert one.latents
        assert list(one.latents) == [s for s in whole.latents if mean[s] <= options.noisy_above]
        assert one.noisy == len(whole.latents) - len(one.latents) > 0
    printed = table_lines(quiet, extraction, options.noisy_above)
    for one in quiet:
        assert any(line.startswith(f"  {one.noisy} noisy latents") and "--noisy-above inf" in line for line in printed)
    assert not any("noisy" in line for line in table_lines(everything, extraction))


def test_leaving_out_noisy_latents_needs_an_extraction(clip, sae, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="noisy_above is 0.1, and without an extraction"):
        explain.run(clip, sae, images, Run(tmp_path).stage("explain"), ExplainOptions(noisy_above=0.1))


def test_a_latent_on_cls_alone_says_so(clip, sae, images, tmp_path, capsys) -> None:
    (one,) = explain_images(clip, sae, dict([next(iter(images.items()))]), ExplainOptions(show_latents=2))
    dark = replace(one.activations[0], grid=np.zeros_like(one.activations[0].grid), cls=2.5)
    explained = replace(one, activations=(dark, one.activations[1]))
    first, second = table_lines([explained], None)[1:]
    assert first.endswith("on CLS alone")
    assert "strongest at row" in second
    (tile, lit) = tiles_of([Seen("cat", dark), Seen("dog", one.activations[1])])
    assert (tile.caption, lit.caption) == ("cat (on CLS alone)", "dog")
    texts = words_of(explained_picture(explained, [[Seen("cat", dark)], []], None, []))
    assert texts.count("on CLS alone") == 1
    assert "no patch: on CLS alone" in texts


def words_of(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.usefixtures("drawn")
def test_the_picture_has_numbers_values_and_scales_and_the_image_once(clip, sae, images) -> None:
    (one, _) = explain_images(clip, sae, images, ExplainOptions(patch=(1, 2), show_latents=3))
    seen = [[Seen("猫", where), Seen("x" * 200, where)] for where in one.activations]
    figure = explained_picture(one, seen, (1, 2), ["3 noisy latents are left out."])
    texts = words_of(figure)
    for latent, value, where in zip(one.latents, one.values, one.activations, strict=True):
        assert f"latent {latent}" in texts
        assert f"activation {number(value)}" in texts
        assert f"light up to {number(float(where.grid.max()))}" in texts
    assert any("row 1, column 2" in text for text in texts)
    assert {"none", "largest", "猫", "3 noisy latents are left out."} <= set(texts)
    assert len(figure.axes[0].images) == 1 + 1 + 3 * (1 + 2)  # the image, the scale, and every latent's
    with Image.open(io.BytesIO(figures.png(figure))) as picture:
        assert picture.size[0] > 4 * 256


def test_with_references(clip, sae, images, references, tmp_path, capsys) -> None:
    stage = Run(tmp_path).stage("explain")
    options = ExplainOptions(show_latents=3, show_images=2)
    explained = explain.run(clip, sae, images, stage, options, references=references)
    printed = capsys.readouterr().out
    table = stage.read_table("explain.csv")
    assert table["image"] == [name for name in images for _ in range(3)]
    for one in explained:
        assert one.name in printed
        for latent in one.latents:
            assert f"latent {latent:>6}" in printed
    with Image.open(stage.path / "image-001.png") as picture:
        assert picture.format == "PNG"
    html = stage.load_json("section")["html"]
    assert html.count(">this image<") == 2
    assert html.count(">in this image<") == 6
    assert "mostly" in printed


def test_without_references(clip, sae, images, tmp_path, capsys) -> None:
    stage = Run(tmp_path).stage("explain")
    explain.run(clip, sae, images, stage, ExplainOptions(show_latents=2))
    assert "mostly" not in capsys.readouterr().out
    with Image.open(stage.path / "image-002.png") as picture:
        assert picture.format == "PNG"


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

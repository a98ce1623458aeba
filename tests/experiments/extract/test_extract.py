"""Extract: right against a dense computation, the same bits after a kill, honest about what never fired."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from patchsae.data import BadImage, Sample, open_images
from patchsae.data.shapes import ShapesWorld
from patchsae.disk.runs import ConfigDiffers, Run, Stage
from patchsae.experiments import extract
from patchsae.experiments.extract import Extraction
from patchsae.experiments.extract.experiment import latent_columns
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.extract.section import interesting
from patchsae.experiments.provenance import describe_sources
from tests.experiments.extract import extract_process
from tests.experiments.extract.extract_process import OPTIONS
from tests.experiments.worlds import S, dense_latents, make_images, make_sae, pixels_of
from tests.parallel.launch import alone


@pytest.fixture(scope="module")
def extraction(clip, sae, tmp_path_factory) -> Extraction:
    stage = Run(tmp_path_factory.mktemp("run")).stage("extract")
    return extract.run(clip, sae, make_images(), stage, ExtractOptions(batch_size=5, noisy_above=10))


def test_statistics_agree_with_a_dense_computation(clip, sae, extraction) -> None:
    dataset = make_images()
    dense = dense_latents(clip, sae, pixels_of(clip, dataset))
    means = dense.double().mean(1)
    active = (means > 0).sum(0)
    assert torch.equal(extraction.image_counts, active)
    assert torch.equal(extraction.frequency, active.double() / len(dataset))
    expected = torch.where(active > 0, means.sum(0) / active.clamp_min(1), 0)
    torch.testing.assert_close(extraction.mean_activation, expected, rtol=1e-5, atol=1e-7)
    over = dense > 0.2
    assert torch.equal(extraction.counts, over.sum((0, 1)))
    labels = torch.from_numpy(dataset.labels)
    for label in range(len(dataset.classnames)):
        assert torch.equal(extraction.class_counts[label], over[labels == label].sum((0, 1)))
        assert extraction.class_images[label] == (labels == label).sum()
    for latent in range(S):
        n = min(10, int(active[latent]))
        best = means[:, latent].argsort(descending=True)[:n]
        assert extraction.top_images.images[latent].tolist() == best.tolist() + [-1] * (10 - n)
        flat = dense[:, :, latent].flatten()
        torch.testing.assert_close(extraction.top_patches.values[latent], flat.topk(10).values)
    assert torch.equal(extraction.never_fired, active == 0)


def test_what_never_fired_says_so_without_nan_or_image(clip, sae, extraction) -> None:
    columns = latent_columns(extraction, make_images())
    silent = [latent for latent in range(S) if columns["never_fired"][latent]]
    assert 0 < len(silent) < S
    for latent in silent:
        for name in (
            "mean_activation",
            "max_activation",
            "label_entropy",
            "label_std",
            "majority_class",
            "top_image_id",
        ):
            assert columns[name][latent] is None
        assert columns["frequency"][latent] == 0
    for name, column in columns.items():
        assert not any(isinstance(value, float) and np.isnan(value) for value in column), name
    assert not set(interesting(extraction, noisy_above=10, n=S)) & set(silent)


def test_entropy_is_undefined_below_ten_images(extraction) -> None:
    entropy, defined = extraction.entropy
    assert torch.equal(defined, extraction.image_counts >= 10)
    assert bool((entropy[~defined] == 0).all())


def test_noisy_latents_are_not_shown(extraction) -> None:
    middle = float(extraction.mean_activation[~extraction.never_fired].median())
    shown = interesting(extraction, noisy_above=middle, n=S)
    assert shown
    assert bool((extraction.mean_activation[shown] <= middle).all())


def test_the_gallery_says_its_order_and_what_it_leaves_out(clip, sae, extraction, tmp_path) -> None:
    middle = float(extraction.mean_activation[~extraction.never_fired].median())
    noisy, undefined = extraction.mean_activation > middle, ~extraction.entropy[1]
    few = int((undefined & ~noisy & ~extraction.never_fired).sum())
    stage = Run(tmp_path).stage("extract")
    extract.run(clip, sae, make_images(), stage, ExtractOptions(batch_size=5, noisy_above=middle, show_images=1))
    html = stage.load_json("section")["html"]
    assert "For every label" in html
    assert f"{int(noisy.sum())} noisy latents (mean activation above" in html
    assert "--noisy-above inf leaves none out" in html
    assert f"{few} latents with fewer than 10 labelled reference images are left out" in html
    everything = Run(tmp_path / "all").stage("extract")
    extract.run(clip, sae, make_images(), everything, ExtractOptions(batch_size=5, noisy_above=np.inf, show_images=1))
    assert "noisy" not in everything.load_json("section")["html"]


def test_the_order_of_the_gallery_is_by_turns_of_the_labels(extraction) -> None:
    shown = interesting(extraction, noisy_above=np.inf, n=S)
    entropy, labels = extraction.entropy[0].tolist(), extraction.majority_label.tolist()
    turns = [sum(labels[other] == labels[latent] for other in shown[:place]) for place, latent in enumerate(shown)]
    keys = [
        (turn, entropy[latent], -float(extraction.top_patches.values[latent, 0]))
        for turn, latent in zip(turns, shown, strict=True)
    ]
    assert keys == sorted(keys)
    assert max(turns) > 0


@pytest.mark.slow  # the process that others are forked from imports torch and torchvision first
def test_a_killed_process_resumes_to_the_same_bits(clip, sae, clip_folder, tmp_path) -> None:
    n = 120
    process = alone(extract_process.work, clip_folder, tmp_path / "broken", n)
    while not (tmp_path / "broken" / "extract" / "fold.safetensors").exists() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    broken, whole = Run(tmp_path / "broken").stage("extract"), Run(tmp_path / "whole").stage("extract")
    assert 0 < int(broken.load_tensors("fold")["position"]) < n
    for stage in (broken, whole):
        extract.run(clip, sae, make_images(n), stage, replace(OPTIONS, save_minutes=1.0))
    assert_same_bits(broken, whole)


class Interrupting(ShapesWorld):
    """The same pictures, but the user presses Ctrl-C while the eighth is drawn."""

    def sample(self, i: int) -> Sample:
        if i == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sample(i)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_call_goes_on_to_the_same_bits(clip, sae, tmp_path) -> None:
    broken, whole = Run(tmp_path / "broken").stage("extract"), Run(tmp_path / "whole").stage("extract")
    options = replace(OPTIONS, save_minutes=60.0)
    with pytest.raises(SystemExit) as stopped:
        extract.run(clip, sae, Interrupting(n=20), broken, options)
    assert stopped.value.code == 128 + signal.SIGINT
    assert int(broken.load_tensors("fold")["position"]) == 9
    for stage in (broken, whole):
        extract.run(clip, sae, make_images(20), stage, options)
    assert_same_bits(broken, whole)


def assert_same_bits(resumed: Stage, unbroken: Stage) -> None:
    for name in ("latents", "top", "class_counts"):
        tensors, expected = resumed.load_tensors(name), unbroken.load_tensors(name)
        assert tensors.keys() == expected.keys()
        for key in tensors:
            assert tensors[key].numpy().tobytes() == expected[key].numpy().tobytes(), key
    assert not (resumed.path / "fold.safetensors").exists()


def test_an_extraction_knows_what_it_was_made_from(clip, sae, tmp_path) -> None:
    stage, dataset = Run(tmp_path).stage("extract"), make_images(4)
    extract.run(clip, sae, dataset, stage, ExtractOptions(top=2, show_latents=0))
    assert Extraction.load(stage).made_from == describe_sources(clip, sae, dataset)
    assert (stage.path / "scatter.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_stage_is_not_run_again(clip, sae, tmp_path, capsys) -> None:
    stage = Run(tmp_path).stage("extract")
    options = ExtractOptions(top=2, show_latents=1)
    first = extract.run(clip, sae, make_images(4), stage, options)
    written = {path.name: path.stat().st_mtime_ns for path in stage.path.iterdir() if not path.name.startswith(".")}
    second = extract.run(clip, sae, make_images(4), stage, options)
    assert "already finished" in capsys.readouterr().out
    assert torch.equal(first.sums, second.sums)
    assert written == {path.name: path.stat().st_mtime_ns for path in stage.path.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("change", ["sae", "dataset", "options"])
def test_a_stage_made_from_something_else_is_not_reused(clip, sae, tmp_path, change) -> None:
    stage = Run(tmp_path).stage("extract")
    extract.run(clip, sae, make_images(4), stage, ExtractOptions(top=2))
    dataset = make_images(4, seed=1) if change == "dataset" else make_images(4)
    other = make_sae(clip.width, seed=1) if change == "sae" else sae
    options = ExtractOptions(top=2, threshold=0.3 if change == "options" else 0.2)
    with pytest.raises(ConfigDiffers, match="threshold" if change == "options" else change):
        extract.run(clip, other, dataset, stage, options)


@pytest.fixture
def folder_with_a_bad_image(tmp_path) -> Path:
    world = make_images(6)
    for i in range(6):
        folder = tmp_path / "images" / ("circle", "square")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        world.sample(i).image.save(folder / f"{i}.png")
    broken = tmp_path / "images" / "square" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    return tmp_path / "images"


def test_a_bad_image_is_skipped_and_reported(clip, sae, tmp_path, folder_with_a_bad_image) -> None:
    dataset = open_images(str(folder_with_a_bad_image))
    stage = Run(tmp_path / "run").stage("extract")
    options = ExtractOptions(top=6, batch_size=2, on_bad_image="skip")
    extraction = extract.run(clip, sae, dataset, stage, options)
    assert extraction.images == 5
    assert extraction.class_images.tolist() == [3, 2]
    (bad,) = [i for i in range(6) if "3.png" in dataset.ids(i)]
    assert bad not in extraction.top_images.images
    assert "3.png" in stage.load_json("section")["html"]


@pytest.mark.slow
def test_a_bad_image_stops_and_can_then_be_skipped(clip, sae, tmp_path, folder_with_a_bad_image) -> None:
    dataset = open_images(str(folder_with_a_bad_image))
    stage = Run(tmp_path / "run").stage("extract")
    with pytest.raises(BadImage, match=r"3\.png"):
        extract.run(clip, sae, dataset, stage, ExtractOptions(batch_size=2, save_minutes=0))
    options = ExtractOptions(batch_size=2, save_minutes=0, on_bad_image="skip")
    assert extract.run(clip, sae, dataset, stage, options).images == 5


def test_images_without_labels(clip, sae, tmp_path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for i in range(3):
        make_images().sample(i).image.save(folder / f"{i}.png")
    options = ExtractOptions(noisy_above=10)
    extraction = extract.run(clip, sae, open_images(str(folder)), Run(tmp_path / "run").stage("extract"), options)
    assert extraction.class_counts is None
    assert extraction.classnames is None
    assert bool((extraction.majority_label == -1).all())
    assert interesting(extraction, 10, 3)


def test_an_autoencoder_of_another_width_is_refused(clip, tmp_path) -> None:
    with pytest.raises(ValueError, match="width 16"):
        extract.run(clip, make_sae(16), make_images(2), Run(tmp_path).stage("extract"))


def test_no_images_are_refused(clip, sae, tmp_path) -> None:
    with pytest.raises(ValueError, match="no images"):
        extract.run(clip, sae, make_images(0), Run(tmp_path).stage("extract"))

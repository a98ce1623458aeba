"""Training on a cache of activations instead of images."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from patchsae import load_sae
from patchsae.activations import CacheOptions, write_cache
from patchsae.cli.entry import main
from patchsae.data import open_images
from patchsae.disk.runs import ConfigDiffers, Run, Stage
from patchsae.interrupt import Interrupted
from patchsae.models.clip import SplitCLIP
from patchsae.training.origin import FromCache
from patchsae.training.trainer import train

from .tiny import SOURCE, final_bytes, short_config, timeless


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, clip: SplitCLIP) -> Path:
    """Four shards of the images that every training test uses."""
    folder = tmp_path_factory.mktemp("cache")
    options = CacheOptions(batch_size=3, shard_mb=0.001)
    write_cache(clip, open_images(SOURCE), folder, options, origin={"images": SOURCE})
    return folder


def train_in(root: Path, cache: Path, **changes: object) -> Stage:
    stage = Run(root).stage("train")
    train(FromCache(cache), short_config(**changes), stage)
    return stage


def stop_at(stage: Stage, step: int) -> threading.Thread:
    """A thread that sends this process SIGTERM as soon as the step has been taken."""

    def watch() -> None:
        while len(stage.metrics()) < step:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_it_learns_and_remembers_the_model_and_the_images(tmp_path: Path, cache: Path, clip: SplitCLIP) -> None:
    stage = train_in(tmp_path, cache, total_images=240, l1=1e-4)
    rows = stage.metrics()
    assert rows[-1]["total"] < 0.7 * rows[0]["total"]
    metadata = load_sae(stage.path).config.metadata
    assert metadata["images"] == SOURCE
    assert {key: metadata[key] for key in clip.metadata} == clip.metadata


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"variant": "topk", "k": 4, "shuffle": 4, "tokens_per_image": 2}])
def test_stopped_and_given_again_it_ends_with_the_same_bits(
    tmp_path: Path, cache: Path, changes: dict[str, object]
) -> None:
    unbroken = train_in(tmp_path / "unbroken", cache, total_images=400, **changes)
    watcher = stop_at(Run(tmp_path / "broken").stage("train"), 20)
    with pytest.raises(Interrupted):
        train_in(tmp_path / "broken", cache, total_images=400, **changes)
    watcher.join()
    resumed = train_in(tmp_path / "broken", cache, total_images=400, **changes)
    assert final_bytes(resumed) == final_bytes(unbroken)
    assert timeless(resumed) == timeless(unbroken)


def test_it_does_not_go_on_with_another_cache(tmp_path: Path, cache: Path, clip: SplitCLIP) -> None:
    watcher = stop_at(Run(tmp_path / "run").stage("train"), 5)
    with pytest.raises(Interrupted):
        train_in(tmp_path / "run", cache, total_images=4000)
    watcher.join()
    other = tmp_path / "other"
    write_cache(clip, open_images(SOURCE), other, CacheOptions(store="int8"), origin={"images": SOURCE})
    with pytest.raises(ConfigDiffers, match="cache: was"):
        train_in(tmp_path / "run", other, total_images=4000)


def test_settings_that_are_refused_do_not_begin_the_stage(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="of memory"):
        train_in(tmp_path, cache, expansion=10**9)
    train_in(tmp_path, cache, total_images=4)


def test_the_verb_refuses_images_that_are_not_those_of_the_cache(
    tmp_path: Path, cache: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--run", str(tmp_path), "--cache", str(cache), "--total-images", "8", "--batch-size", "4"]
    for named in (["--images", "shapes:train?n=24&seed=5&size=16"], ["--model", "tiny"]):
        with pytest.raises(SystemExit) as stop:
            main(["train", *small, *named])
        assert stop.value.code == 2
        assert "the cache was written from" in capsys.readouterr().err
    main(["train", *small, "--images", SOURCE, "--model", f"local-dir:{clip_folder}", "--expansion", "2"])
    assert torch.isfinite(load_sae(tmp_path / "train").W_dec).all()


def test_the_verb_refuses_another_dtype_than_that_of_the_cache(
    tmp_path: Path, clip: SplitCLIP, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = {"images": SOURCE, "dtype": "float32"}  # as `patchsae cache` records them
    write_cache(clip, open_images(SOURCE), tmp_path / "cache", CacheOptions(), origin=origin)
    small = ["--run", str(tmp_path), "--cache", str(tmp_path / "cache"), "--total-images", "8", "--batch-size", "4"]
    with pytest.raises(SystemExit) as stop:
        main(["train", *small, "--expansion", "2", "--dtype", "bfloat16"])
    assert stop.value.code == 2
    assert "--dtype is bfloat16; " in capsys.readouterr().err
    main(["train", *small, "--expansion", "2", "--dtype", "float32"])

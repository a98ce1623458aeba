"""What a cache writer writes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patchsae.activations import CacheIndex, CacheOptions, write_cache
from patchsae.activations.mixing import chosen_tokens
from patchsae.activations.packing import Packed, pack
from patchsae.activations.room import announce
from patchsae.data import BadImage, ImageDataset, open_images, shuffled_order
from patchsae.disk.atomic import DiskFull
from patchsae.disk.runs import ConfigDiffers
from patchsae.models.clip import SplitCLIP, load_clip
from tests.activations.small import SHARD, T, options


def residuals(clip: SplitCLIP, dataset: ImageDataset, positions: np.ndarray) -> torch.Tensor:
    pixels = [clip.preprocess(dataset.sample(int(i)).image) for i in positions]
    return torch.cat([clip.residual(torch.stack(pixels[i : i + 4])) for i in range(0, len(pixels), 4)])


def test_shards_hold_the_residual_stream_in_a_shuffled_order(
    cache: Path, stored: CacheOptions, clip: SplitCLIP, dataset: ImageDataset
) -> None:
    index = CacheIndex.load(cache)
    assert index.complete
    assert [record.images for record in index.shards] == [8, 8, 8, 6]
    order = shuffled_order(len(dataset), 0, stored.seed)
    for number, record in enumerate(index.shards):
        shard = load_file(cache / record.file)
        positions = order[number * SHARD : (number + 1) * SHARD]
        assert shard["image"].tolist() == positions.tolist()
        expected = pack(residuals(clip, dataset, positions), stored.store)
        assert torch.equal(shard["tokens"], expected.tokens)
        assert torch.equal(Packed(shard["tokens"], shard.get("scale")).unpack(), expected.unpack())


def test_bytes_do_not_depend_on_workers(
    tmp_path: Path, cache: Path, stored: CacheOptions, clip: SplitCLIP, dataset: ImageDataset
) -> None:
    write_cache(clip, dataset, tmp_path / "cache", stored, workers=2)
    for path in cache.glob("*.safetensors"):
        assert (tmp_path / "cache" / path.name).read_bytes() == path.read_bytes()


def test_a_selection_of_tokens_is_drawn_by_the_place_of_the_image(
    tmp_path: Path, clip: SplitCLIP, dataset: ImageDataset
) -> None:
    index = write_cache(clip, dataset, tmp_path / "cache", options(tokens_per_image=2, seed=4))
    shard = load_file(tmp_path / "cache" / index.shards[0].file)
    whole = residuals(clip, dataset, shard["image"].numpy()).to(torch.bfloat16)
    for place, (tokens, grid) in enumerate(zip(shard["tokens"], whole, strict=False)):
        assert torch.equal(tokens, grid[torch.from_numpy(chosen_tokens(T, 2, 4, place))])


def test_a_finished_cache_is_left_alone_and_other_settings_are_refused(
    tmp_path: Path, clip: SplitCLIP, dataset: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    first = write_cache(clip, dataset, folder, options())
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert write_cache(clip, dataset, folder, options()) == first
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ConfigDiffers, match="store: was 'bfloat16', now 'int8'"):
        write_cache(clip, dataset, folder, options(store="int8"))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = write_cache(clip, dataset, folder, options(store="int8"), overwrite=True)
    assert other.options.store == "int8"


def test_a_cache_larger_than_the_disk_is_refused_before_anything_is_written(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = replace(CacheIndex.load(cache), images=10**12, shards=())
    with pytest.raises(DiskFull, match=r"the cache needs \d+ TB and .* free: .*--tokens-per-image"):
        announce(index, tmp_path / "not" / "there")
    assert "1,000,000,000,000 images x 5 tokens x 16" in capsys.readouterr().err
    assert not (tmp_path / "not").exists()


def test_bad_images_stop_or_are_left_out_and_named(
    tmp_path: Path, clip: SplitCLIP, dataset: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    order = shuffled_order(20, 0, 0)
    bad = {int(order[1]), *(int(i) for i in order[8:16])}  # one of the first shard, all of the second
    for i in range(20):
        path = tmp_path / "images" / f"{i:02}.png"
        if i in bad:
            path.write_bytes(b"no picture")
        else:
            dataset.sample(i).image.save(path)
    images = open_images(tmp_path / "images")
    with pytest.raises(BadImage):
        write_cache(clip, images, tmp_path / "cache", options())
    index = write_cache(clip, images, tmp_path / "skipped", options(on_bad_image="skip"))
    assert [record.images for record in index.shards] == [7, 0, 4]
    assert {record.index for record in index.bad} == bad
    assert "9 of 20 images could not be read" in capsys.readouterr().err


def test_a_residual_stream_that_is_not_finite_names_its_image(
    tmp_path: Path, clip_folder: Path, dataset: ImageDataset
) -> None:
    broken = load_clip(f"local-dir:{clip_folder}", device="cpu")
    broken.model.visual.conv1.weight.data.fill_(float("nan"))
    first = dataset.ids(int(shuffled_order(30, 0, 0)[0]))
    with pytest.raises(ValueError, match=f"residual stream of image '{first}' is not finite"):
        write_cache(broken, dataset, tmp_path / "cache", options())


def test_wrong_options_are_refused(clip: SplitCLIP, dataset: ImageDataset) -> None:
    for name, value in {"store": "int4", "shard_mb": 0, "batch_size": 0, "tokens_per_image": 0, "seed": -1}.items():
        with pytest.raises(ValueError, match=f"CacheOptions.{name} is"):
            CacheOptions(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens_per_image is 6; expected at most 5"):
        CacheIndex.of(clip, dataset, options(tokens_per_image=6), {})

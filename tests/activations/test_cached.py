"""Reading a cache: what comes out, in which order, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from patchsae.activations import CachedTokens, CacheIndex, CacheOptions, repair_cache, write_cache
from patchsae.activations.cached import cache_fingerprint
from patchsae.activations.chunks import ChunkReader
from patchsae.activations.index import CacheMismatch
from patchsae.activations.plan import Place
from patchsae.activations.shard import DamagedShard
from patchsae.data import ImageDataset, ReadGroups, batches, open_images, train_order
from patchsae.disk import atomic
from patchsae.models.clip import SplitCLIP, load_clip
from patchsae.training.config import TrainConfig
from tests.activations.small import SHARD, SOURCE, D, T, all_same, options, same, union, wanted
from tests.training.tiny import open_clip_dir, write_clip


@pytest.fixture(scope="module")
def grids(clip: SplitCLIP, dataset: ImageDataset) -> dict[str, torch.Tensor]:
    """Image id -> residual stream [T, D]."""
    return {batch.ids[0]: clip.residual(batch.pixels)[0] for batch in batches(dataset, clip.preprocess, 1)}


def close(tokens: torch.Tensor, expected: torch.Tensor, store: str) -> bool:
    largest = expected.abs().amax(-1, keepdim=True)
    bound = expected.abs() * 2**-8 if store == "bfloat16" else largest / 127 / 2
    return bool(((tokens - expected).abs() <= bound * 1.01 + 1e-5).all())


def test_a_pass_has_every_image_once_as_it_was(
    cache: Path, stored: CacheOptions, grids: dict[str, torch.Tensor]
) -> None:
    source = CachedTokens(cache, wanted(5, steps=17), buffer_shards=2)
    found = [*source.first(1), *source.batches(5)]
    assert [batch.tokens.shape for batch in found] == [(5, T, D)] * 18
    for epoch in range(3):
        ids = [id for batch in found[6 * epoch : 6 * epoch + 6] for id in batch.ids]
        assert sorted(ids) == sorted(grids)
    for batch in found:
        assert batch.tokens.dtype == torch.float32
        assert all(close(x, grids[id], stored.store) for id, x in zip(batch.ids, batch.tokens, strict=True))
    assert (source.width, source.images_total, source.bad) == (D, 90, [])


@given(st.integers(1, 9), st.integers(0, 3), st.sampled_from([None, 2]), st.integers(0, 12), st.integers(1, 5))
def test_going_on_from_any_place_gives_the_same_bits(
    cache: Path, size: int, shuffle: int, count: int | None, done: int, together: int
) -> None:
    chosen = wanted(size, steps=12, shuffle=shuffle, tokens_per_image=count)
    whole = list(CachedTokens(cache, chosen, buffer_shards=together).batches(size))
    rest = CachedTokens(cache, chosen, buffer_shards=together).batches(size * (done + 1))
    assert all_same(rest, whole[done:])


@given(st.integers(1, 9), st.integers(0, 3), st.sampled_from([None, 2]), st.integers(2, 4))
def test_the_parts_of_processes_are_the_batch_of_one_bit_for_bit(
    cache: Path, batch_size: int, shuffle: int, count: int | None, size: int
) -> None:
    if batch_size < size:
        return
    chosen = wanted(batch_size, steps=9, shuffle=shuffle, tokens_per_image=count)
    alone = CachedTokens(cache, chosen)
    parts = [CachedTokens(cache, chosen, Place(size, rank)) for rank in range(size)]
    for one, *others in zip(alone.batches(batch_size), *(part.batches(batch_size) for part in parts), strict=True):
        assert torch.equal(union(others), one.tokens.flatten(0, -2))
        assert sum(other.images for other in others) == one.images
        if not shuffle:
            assert [id for other in others for id in other.ids] == one.ids
    assert all(same(part.first(1)[0], alone.first(1)[0]) for part in parts)


@given(st.integers(1, 5), st.integers(0, 100), st.data())
def test_a_pass_reads_every_shard_once_and_from_its_beginning_to_its_end(
    cache: Path, together: int, seed: int, data: st.DataObject
) -> None:
    index = CacheIndex.load(cache)
    starts = np.cumsum([0, *(record.images for record in index.shards)])
    order = train_order(30, 90, seed, ReadGroups(starts, together))
    begin = data.draw(st.integers(0, 89))
    chunks = list(ChunkReader(cache, index, order, starts).chunks(np.arange(begin, 90)))
    assert [place for chunk in chunks for place in chunk.places] == list(range(begin, 90))
    read: Counter[tuple[int, int]] = Counter()
    for chunk in chunks:
        shards = {int(s) for s in np.searchsorted(starts, order[chunk.places], side="right") - 1}
        assert len(shards) <= together
        read.update((chunk.begin // 30, shard) for shard in shards)
    assert set(read.values()) == {1}


def test_images_of_different_shards_meet_in_a_batch(cache: Path) -> None:
    index = CacheIndex.load(cache)
    source = CachedTokens(cache, wanted(6, steps=4), buffer_shards=4)
    written = [id for s in index.shards for id in _ids(cache / s.file)]
    for batch in source.batches(6):
        assert len({written.index(id) // SHARD for id in batch.ids}) > 1


def test_a_cache_of_some_tokens_has_those_and_no_more(
    tmp_path: Path, clip: SplitCLIP, dataset: ImageDataset, grids: dict[str, torch.Tensor]
) -> None:
    write_cache(clip, dataset, tmp_path / "cache", options(tokens_per_image=3))
    source = CachedTokens(tmp_path / "cache", wanted(5, steps=5))
    for batch in [*source.first(1), *source.batches(5)]:
        assert batch.tokens.shape == (15, D)
        for id, tokens in zip(batch.ids, batch.tokens.reshape(5, 3, D), strict=True):
            assert len(set(torch.cdist(tokens, grids[id]).argmin(1).tolist())) == 3
    fewer = CachedTokens(tmp_path / "cache", wanted(5, steps=5, tokens_per_image=2))
    assert next(fewer.batches(5)).tokens.shape == (10, D)
    with pytest.raises(ValueError, match="tokens_per_image is 4, and .* holds 3 tokens of each image"):
        CachedTokens(tmp_path / "cache", wanted(tokens_per_image=4))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "start is 'geometric-median', .*; expected token-median, mean or zeros"),
        ({"start": "zeros", "cls_only": True}, "cls_only is True, .*; expected false"),
        ({"start": "zeros", "cls_weight": 2.0}, "cls_weight is 2.0, .*; expected 1"),
    ],
)
def test_what_needs_whole_images_is_refused_for_a_cache_of_some_tokens(
    tmp_path: Path, clip: SplitCLIP, dataset: ImageDataset, changes: dict[str, object], expected: str
) -> None:
    write_cache(clip, dataset, tmp_path / "cache", options(tokens_per_image=3))
    with pytest.raises(ValueError, match=expected):
        CachedTokens(tmp_path / "cache", TrainConfig(**changes).stream_plan())  # type: ignore[arg-type]


def test_damage_is_refused_by_name_and_the_named_command_mends_it(
    tmp_path: Path, cache: Path, clip: SplitCLIP, dataset: ImageDataset
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    damaged, gone = folder / "shard-00001.safetensors", folder / "shard-00003.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 64
    damaged.write_bytes(content)
    gone.unlink()
    with pytest.raises(DamagedShard, match=r"shard-0000[13]\.safetensors .* `patchsae cache --out .* --check`"):
        list(CachedTokens(folder, wanted()).batches(4))
    assert repair_cache(clip, dataset, folder) == [damaged.name, gone.name]
    assert repair_cache(clip, dataset, folder) == []
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in cache.glob("*.safetensors"))
    assert (folder / "index.json").read_bytes() == (cache / "index.json").read_bytes()


def test_a_prefix_is_a_cache_and_says_so(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "prefix"
    shutil.copytree(cache, folder)
    index = CacheIndex.load(folder)
    atomic.write_text(folder / "index.json", _shortened(index, 2).text())
    (folder / index.shards[2].file).unlink()
    with pytest.warns(UserWarning, match="a part of a cache: 16 of 30 images"):
        source = CachedTokens(folder, wanted(4, steps=3))
    ids = [id for batch in [*source.first(1), *source.batches(4)] for id in batch.ids]
    assert sorted(ids) == sorted(id for s in index.shards[:2] for id in _ids(folder / s.file))
    assert cache_fingerprint(source.index) != cache_fingerprint(index)
    atomic.write_text(folder / "index.json", _shortened(index, 0).text())
    with pytest.raises(ValueError, match="holds no images yet"):
        CachedTokens(folder, wanted())


def test_another_model_layer_or_dataset_is_an_error_that_names_both(
    tmp_path: Path, cache: Path, clip: SplitCLIP, dataset: ImageDataset
) -> None:
    index = CacheIndex.load(cache)
    index.require(clip, dataset)
    other = open_clip_dir(write_clip(tmp_path / "other", seed=1))
    with pytest.raises(CacheMismatch, match=f"{clip.fingerprint}.* and this is .*{other.fingerprint}"):
        index.require(clip=other)
    clip_of_another_layer = load_clip(clip.name, layer=0, device="cpu")
    with pytest.raises(CacheMismatch, match="layer 1 .* and this is .* layer 0"):
        index.require(clip=clip_of_another_layer)
    with pytest.raises(CacheMismatch, match="30 images .* and these are 31 images"):
        index.require(dataset=open_images(SOURCE.replace("n=30", "n=31")))
    with pytest.raises(CacheMismatch):
        repair_cache(other, dataset, cache)


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a cache of activations: `patchsae cache --out"):
        CachedTokens(tmp_path, wanted())
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="another version of the format"):
        CachedTokens(tmp_path, wanted())


def _ids(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["ids"])


def _shortened(index: CacheIndex, shards: int) -> CacheIndex:
    return replace(index, shards=index.shards[:shards])

"""Fixtures of the tests of activations: a CLIP of T = 5 tokens of width D = 16, and a small cache written from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.activations import CacheOptions, write_cache
from patchsae.data import ImageDataset, open_images
from patchsae.models.clip import SplitCLIP
from tests.activations.small import SOURCE, options
from tests.training.tiny import open_clip_dir, write_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> SplitCLIP:
    return open_clip_dir(clip_folder)


@pytest.fixture(scope="session")
def dataset() -> ImageDataset:
    return open_images(SOURCE)


@pytest.fixture(scope="session", params=["bfloat16", "int8"])
def stored(request: pytest.FixtureRequest) -> CacheOptions:
    return options(store=request.param)


@pytest.fixture(scope="session")
def cache(
    tmp_path_factory: pytest.TempPathFactory, clip: SplitCLIP, dataset: ImageDataset, stored: CacheOptions
) -> Path:
    """A complete cache of 30 images in 4 shards of 8, 8, 8 and 6. Not to be changed."""
    folder = tmp_path_factory.mktemp("cache") / stored.store
    write_cache(clip, dataset, folder, stored, origin={"images": SOURCE})
    return folder

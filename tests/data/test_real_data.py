"""Real images: set DATA to a folder with cifar10-train.parquet (50,000 JPEGs, Hugging Face layout)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from patchsae.data import open_images, shuffled_order

CIFAR = Path(os.environ.get("DATA", "")) / "cifar10-train.parquet"

pytestmark = pytest.mark.skipif(not CIFAR.is_file(), reason="DATA names no folder with cifar10-train.parquet")


def test_cifar10_opens_and_decodes_fast_in_shuffled_order():
    dataset = open_images(CIFAR)
    assert len(dataset) == 50_000
    assert dataset.classnames[:2] == ["airplane", "automobile"]
    assert np.bincount(dataset.labels).tolist() == [5000] * 10
    order = shuffled_order(len(dataset), 0, 0)[:3000].tolist()
    started = time.perf_counter()
    assert {dataset.sample(i).image.size for i in order} == {(32, 32)}
    assert len(order) / (time.perf_counter() - started) > 1000

"""Views of the few images: fixed by (seed, epoch, position), within the published ranges."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchsae.adapt.views import AREA, Views, crop_and_flip, epoch_order
from patchsae.data import open_images
from patchsae.data.base import DataError

IMAGES = open_images("shapes:train?n=7&size=24")


def picture(views: Views, place: int) -> np.ndarray:
    return np.asarray(views.sample(place).image)


def test_a_view_depends_on_seed_epoch_and_position_alone() -> None:
    views = Views(IMAGES, 3, (16, 16), seed=4)
    again = pickle.loads(pickle.dumps(views))
    backwards = {place: picture(again, place) for place in reversed(range(21))}
    assert all(np.array_equal(picture(views, place), backwards[place]) for place in range(21))
    assert not np.array_equal(picture(views, 2), picture(views, 9))
    assert not np.array_equal(picture(views, 2), picture(Views(IMAGES, 3, (16, 16), seed=5), 2))


def test_a_view_has_its_images_label_id_and_the_models_size() -> None:
    views = Views(IMAGES, 2, (12, 20), seed=0)
    assert len(views) == 14
    for place in range(14):
        sample = views.sample(place)
        assert (sample.id, sample.label) == (views.ids(place), views.labels[place])
        assert (sample.id, sample.label) == (IMAGES.ids(place % 7), IMAGES.labels[place % 7])
        assert sample.image.size == (20, 12)


def test_without_augmentation_every_epoch_shows_the_images_as_they_are() -> None:
    views = Views(IMAGES, 2, (16, 16), seed=0, augment="none")
    for place in range(14):
        assert np.array_equal(picture(views, place), np.asarray(IMAGES.sample(place % 7).image))


@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 10_000))
def test_a_crop_keeps_every_pixel_it_shows_and_about_its_share(width: int, height: int, seed: int) -> None:
    """Pixels carry their own place: the corners of the view say which part of the picture it is."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=2))
    view = np.asarray(crop_and_flip(image, (64, 64), np.random.default_rng(seed))).astype(int)
    h = view[..., 0].max() - view[..., 0].min() + 1
    w = view[..., 1].max() - view[..., 1].min() + 1
    assert 0.7 * AREA[0] * width * height - width - height <= h * w <= width * height


def test_half_of_the_views_are_mirrored() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (24, 1, 3)))
    generator = np.random.default_rng(0)
    views = [np.asarray(crop_and_flip(ramp, (8, 8), generator)).astype(int) for _ in range(300)]
    mirrored = sum(view[0, 0, 0] > view[0, -1, 0] for view in views)
    assert 120 < mirrored < 180


def test_an_extreme_picture_gives_the_largest_crop_of_a_usual_shape() -> None:
    image = Image.new("RGB", (400, 3), "red")
    view = crop_and_flip(image, (8, 8), np.random.default_rng(1))
    assert view.size == (8, 8)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 5))
def test_an_epoch_shows_images_once_and_drops_what_fills_no_batch(n: int, batch_size: int, epoch: int) -> None:
    order = epoch_order(n, epoch, batch_size, seed=3)
    assert len(set(order.tolist())) == len(order) == (n - n % batch_size if n >= batch_size else n)
    assert ((order >= epoch * n) & (order < (epoch + 1) * n)).all()


def test_epochs_differ_in_order() -> None:
    first, second = (epoch_order(40, epoch, 4, seed=0) - 40 * epoch for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_no_images_are_an_error() -> None:
    with pytest.raises(DataError, match="training set is empty"):
        epoch_order(0, 0, 4, seed=0)

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchsae.report import images


def photo(width=96, height=64, seed=0):
    """Smooth colour, as a camera sees it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def decoded(uri):
    header, content = uri.split(",", 1)
    return header, Image.open(io.BytesIO(base64.b64decode(content, validate=True)))


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from([(64, 64), (90, 40), (40, 90)]))
def test_the_heat_peaks_where_the_patch_peaks(row, column, size):
    values = np.zeros((7, 7), np.float32)
    values[row, column] = 2.0
    image = Image.new("RGB", size, (90, 110, 130))
    heat = np.asarray(images.overlay(image, values, vmax=2.0, size=112), np.float32)
    cold = np.asarray(images.overlay(image, 0 * values, vmax=2.0, size=112), np.float32)
    changed = np.abs(heat - cold).sum(-1)
    y, x = np.unravel_index(changed.argmax(), changed.shape)
    assert (y * 7 // changed.shape[0], x * 7 // changed.shape[1]) == (row, column)


def test_one_maximum_makes_pictures_comparable():
    image, values = photo(), np.full((4, 4), 0.5, np.float32)
    weak, strong = (np.asarray(images.overlay(image, values, vmax)) for vmax in (2.0, 0.5))
    assert not np.array_equal(weak, strong)
    np.testing.assert_array_equal(np.asarray(images.overlay(image, 4 * values, 2.0)), strong)
    np.testing.assert_array_equal(np.asarray(images.overlay(image, 9 * values, 2.0)), strong)  # above vmax: alike


def test_no_activation_draws_no_heat():
    image = photo()
    silent = np.asarray(images.overlay(image, np.zeros((4, 4)), vmax=0.0))
    np.testing.assert_array_equal(silent, np.asarray(images.overlay(image, np.zeros((4, 4)), vmax=3.0)))


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.zeros(16), r"shape \(16,\); expected the patch grid"), (np.array([[np.nan]]), "NaN or infinity")],
)
def test_overlay_refuses_what_is_no_heatmap(values, message):
    with pytest.raises(ValueError, match=message):
        images.overlay(photo(), values, 1.0)


@given(st.integers(1, 300), st.integers(1, 300))
def test_thumbnails_fit_and_keep_the_shape(width, height):
    small = images.thumbnail(Image.new("RGBA", (width, height)), 64)
    assert small.mode == "RGB"
    assert max(small.size) == min(64, max(width, height))
    scale = max(small.size) / max(width, height)
    assert abs(small.width - width * scale) <= 1
    assert abs(small.height - height * scale) <= 1
    assert max(images.thumbnail(small, 64, enlarge=True).size) == 64


@pytest.mark.parametrize("patch", [(0, 0), (1, 2), (3, 3)])
def test_an_outline_frames_one_patch(patch):
    picture = Image.new("RGB", (64, 64), (90, 110, 130))
    changed = np.any(np.asarray(images.outlined(picture, patch, (4, 4))) != np.asarray(picture), axis=2)
    cells = changed.reshape(4, 16, 4, 16).swapaxes(1, 2)
    assert np.argwhere(cells.any(axis=(2, 3))).tolist() == [list(patch)]
    frame = cells[patch]
    assert frame[0].all()
    assert frame[:, -1].all()
    assert not frame[6:10, 6:10].any()
    assert not np.asarray(picture).reshape(-1, 3).std(axis=0).any()  # the given one stays as it was


@given(st.integers(1, 256), st.integers(0, 9))
def test_drawings_come_back_exactly(colors, seed):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (colors, 3), np.uint8)
    drawing = palette[rng.integers(0, colors, (12, 17))]
    header, back = decoded(images.data_uri(Image.fromarray(drawing)))
    assert header == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(back.convert("RGB")), drawing)


def test_photos_come_back_nearly_and_small():
    image = photo(300, 200)
    header, back = decoded(images.data_uri(image))
    assert header in ("data:image/webp;base64", "data:image/jpeg;base64")
    assert back.size == image.size
    difference = np.abs(np.asarray(back.convert("RGB"), np.float32) - np.asarray(image, np.float32))
    assert difference.mean() < 4


def test_a_byte_limit_lowers_quality_until_it_holds():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    free, limited = (len(images.data_uri(noise, limit)) for limit in (None, 9_000))
    assert limited <= 9_000 * 4 / 3 + 40 < free
    few = Image.fromarray(np.asarray(noise)[..., :1].repeat(3, -1))  # 256 greys: PNG, but too large a one
    assert len(images.data_uri(few, 9_000)) <= 9_000 * 4 / 3 + 40

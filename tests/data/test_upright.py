"""One tensor of a picture, whichever way it comes to the model."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchsae
from patchsae.data import batches, load_image, open_images
from patchsae.data.decode import upright_rgb
from patchsae.models.clip import load_clip

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny", device="cpu")


def _noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def _palette_with_transparency() -> Image.Image:
    image = Image.fromarray(_noise(60, 90, 3)).quantize(32)
    image.info["transparency"] = 3
    return image


def _turned(orientation: int) -> tuple[Image.Image, dict]:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return Image.fromarray(_noise(60, 90, 3)), {"exif": exif.tobytes()}


PICTURES = {
    "rgb": (Image.fromarray(_noise(60, 90, 3)), {}),
    "rgba": (Image.fromarray(_noise(60, 90, 4)), {}),
    "grey and alpha": (Image.fromarray(_noise(60, 90, 4)).convert("LA"), {}),
    "palette with transparency": (_palette_with_transparency(), {"transparency": 3}),
    "a transparent colour": (Image.fromarray(_noise(60, 90, 3) // 64 * 64), {"transparency": (64, 64, 64)}),
    "16 bits of grey": (Image.fromarray(_noise(60, 90, dtype=np.uint16)), {}),
    "1 bit": (Image.fromarray(_noise(60, 90)).convert("1"), {}),
    **{f"orientation {n}": _turned(n) for n in range(1, 9)},
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_gives_the_same_tensor_from_pillow_from_its_file_and_from_a_dataset(
    tmp_path: Path, clip, kind
) -> None:
    image, how = PICTURES[kind]
    path = tmp_path / "images" / "x.png"
    path.parent.mkdir()
    image.save(path, **how)
    expected = next(batches(open_images(path.parent), clip.preprocess, 1)).pixels[0]
    assert torch.equal(clip.preprocess(load_image(path)), expected)
    assert torch.equal(clip.preprocess(patchsae.load_image(path)), expected)
    with Image.open(path) as opened:
        assert torch.equal(clip.preprocess(opened), expected)
    with Image.open(path) as opened:
        assert torch.equal(clip.preprocess(pickle.loads(pickle.dumps(upright_rgb(opened)))), expected)


@pytest.mark.parametrize("kind", PICTURES)
def test_what_is_upright_rgb_stays_as_it_is(kind) -> None:
    image, how = PICTURES[kind]
    written = io.BytesIO()
    image.save(written, "PNG", **how)
    once = upright_rgb(Image.open(written))
    twice = upright_rgb(upright_rgb(once.copy()))
    assert (once.mode, once.size) == ("RGB", twice.size)
    assert once.tobytes() == twice.tobytes()


def test_preprocessing_travels_to_workers(clip) -> None:
    image = PICTURES["rgba"][0]
    assert torch.equal(pickle.loads(pickle.dumps(clip.preprocess))(image), clip.preprocess(image))

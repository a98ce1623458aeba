from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from patchsae.data import BadImage, load_image
from patchsae.data.decode import decode


def _bytes(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def _corner_picture(width: int = 6, height: int = 4) -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values * 3)


def _outcome(encoded: bytes) -> tuple[int, int] | str:
    """The size of the picture, or "bad image"; any other exception fails the test."""
    try:
        return decode(encoded, "x").size
    except BadImage:
        return "bad image"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = _corner_picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = _bytes(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    assert np.array_equal(np.asarray(decode(encoded, "x")), np.asarray(expected))


def test_damaged_exif_does_not_make_a_picture_bad():
    encoded = _bytes(_corner_picture(), "JPEG", exif=b"Exif\0\0not a tiff header at all")
    assert decode(encoded, "x").size == (6, 4)


def test_palette_transparency_is_laid_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    picture = decode(_bytes(image, "PNG", transparency=1), "x")
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_half_transparent_alpha_is_blended_with_white():
    for mode, colour in (("RGBA", (0, 0, 0, 128)), ("LA", (0, 128))):
        picture = decode(_bytes(Image.new(mode, (2, 2), colour), "PNG"), "x")
        assert picture.mode == "RGB"
        assert abs(picture.getpixel((0, 0))[0] - 127) <= 1


def test_rgb_with_a_transparent_colour_is_laid_over_white():
    encoded = _bytes(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decode(encoded, "x").getpixel((0, 0)) == (255, 255, 255)


def test_grey_and_bilevel_and_palette_become_rgb():
    grey = decode(_bytes(Image.new("L", (2, 2), 99), "PNG"), "x")
    assert (grey.mode, grey.getpixel((0, 0))) == ("RGB", (99, 99, 99))
    assert decode(_bytes(Image.new("1", (2, 2), 1), "PNG"), "x").getpixel((0, 0)) == (255, 255, 255)
    assert decode(_bytes(_corner_picture().quantize(8), "GIF"), "x").mode == "RGB"


def test_cmyk_becomes_rgb():
    picture = decode(_bytes(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), "x")
    red, green, blue = picture.getpixel((4, 4))
    assert picture.mode == "RGB"
    assert red > 240
    assert max(green, blue) < 15


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    picture = decode(_bytes(Image.fromarray(values), "PNG"), "x")
    assert [picture.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 127, 255]


def test_float_images_are_refused():
    with pytest.raises(BadImage, match=r"mode F .* has no defined range"):
        decode(_bytes(Image.new("F", (2, 2), 0.5), "TIFF"), "x")


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decode(_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x").getpixel((0, 0)) == (
        255,
        0,
        0,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_truncation_is_a_bad_image_or_a_picture_of_the_right_size(format):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    encoded = _bytes(image, format)
    lengths = np.linspace(0, len(encoded) - 1, 60).astype(int)
    outcomes = [_outcome(encoded[:length]) for length in lengths]
    assert set(outcomes) <= {"bad image", (24, 24)}
    assert set(outcomes[:50]) == {"bad image"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_flipped_bytes_raise_nothing_but_bad_image(format):
    generator = np.random.default_rng(1)
    encoded = np.frombuffer(_bytes(_corner_picture(24, 24), format), np.uint8)
    for _ in range(150):
        damaged = encoded.copy()
        places = generator.integers(0, min(len(damaged), 200), 4)
        damaged[places] = generator.integers(0, 256, 4)
        _outcome(damaged.tobytes())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_absurd_size_is_a_bad_image():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="DecompressionBombError"):
        decode(encoded, "x")


def test_reasons_say_what_came(tmp_path):
    with pytest.raises(BadImage, match="it is empty"):
        decode(b"", "x")
    with pytest.raises(BadImage, match=r"not an image format .*18 bytes, starting b'<!DOCTYP'"):
        decode(b"<!DOCTYPE html> 40", "x")
    with pytest.raises(BadImage, match="No such file"):
        load_image(tmp_path / "gone.png")


def test_load_image_reads_a_file(tmp_path):
    image = _corner_picture()
    image.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), np.asarray(image))

"""From encoded bytes to an upright RGB picture, or to the reason why not."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from patchsae.data.base import BadImage

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""File names taken for images, compared without case."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files, fuzzed headers and absurd sizes.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file: RGB, upright. Raises BadImage (its id is the path)."""
    return decode_file(Path(path), str(path))


def decode_file(path: Path, id: str) -> Image.Image:
    """Like `decode`, for a file."""
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise BadImage(id, f"{path}: {error.strerror or error}") from error
    return decode(encoded, id)


def decode(encoded: bytes, id: str) -> Image.Image:
    """The first frame of an encoded image as RGB, upright.

    EXIF orientation is applied. Transparency is laid over white, as viewers show it; 16-bit grey is scaled to 8 bits;
    palette, grey and CMYK are converted by Pillow.

    Raises:
        BadImage: empty, truncated or damaged bytes, an unknown format, or a mode without a defined range (float).
    """
    if not encoded:
        raise BadImage(id, "it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            return _upright(_to_rgb(image), _orientation(image))
    except _DECODER_ERRORS as error:
        raise BadImage(id, _reason(error, encoded)) from error


def decode_cell(cell: object, folder: Path, id: str) -> Image.Image:
    """Like `decode`, for a cell of an image table: bytes, or {"bytes": ..., "path": ...}.

    Bytes count before the path; a lone path is relative to `folder`. Raises BadImage also where there is neither.
    """
    encoded, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(encoded, bytes):
        return decode(encoded, id)
    if path:
        return decode_file(folder / path, id)
    raise BadImage(id, "its row holds neither bytes nor a path")


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: a known extension, not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode == "F":
        raise ValueError("mode F (floating point) has no defined range; expected an image of 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"mode {image.mode} with values {values.min()} .. {values.max()}; expected 0 .. 65535")
    return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none: damaged metadata does not make a picture bad."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODER_ERRORS:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _reason(error: BaseException, encoded: bytes) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"damaged, or not an image format that Pillow knows ({len(encoded)} bytes, starting {encoded[:8]!r})"
    return f"{type(error).__name__}: {error}"

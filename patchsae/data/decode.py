"""From encoded bytes to an upright RGB picture, or to the reason why not."""

from __future__ import annotations

import functools
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from patchsae.data.base import BadImage
from patchsae.disk.claims import require_memory
from patchsae.disk.names import written
from patchsae.disk.paths import is_below
from patchsae.errors import brief

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".tga", ".ico"),
)
"""File names taken for images, compared without case."""

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
_MUCH = 1 << 26  # pixels or bytes, from which on it is asked whether there is memory for them
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


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file: RGB, upright. Raises BadImage (its id is the path)."""
    return decode_file(Path(path), written(str(path)))


def decode_file(path: Path, id: str) -> Image.Image:
    """Like `decode`, for a file. Pipes and devices, which may never end, are bad images."""
    try:
        encoded = _read(path)
    except (OSError, ValueError) as error:
        raise BadImage(id, written(f"{path}: {getattr(error, 'strerror', None) or error}")) from error
    return decode(encoded, id)


def decode(encoded: bytes, id: str) -> Image.Image:
    """The first frame of an encoded image as RGB, upright, as `upright_rgb` makes it.

    Raises:
        BadImage: empty, truncated or damaged bytes, an unknown format, a mode without a defined range (float), or more
            pixels than Pillow takes or memory is there for.
    """
    if not encoded:
        raise BadImage(id, "it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
            pixels = image.width * image.height
            if pixels > _MUCH:
                require_memory(f"an image of {image.width} x {image.height} pixels", 12 * pixels)
            image.load()
            return upright_rgb(image)
    except Exception as error:  # Pillow's plugins raise whatever their libraries do
        raise BadImage(id, written(_reason(error, encoded))) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, upright: what a CLIP's preprocessing begins with. Doing it twice changes nothing.

    EXIF orientation is applied. Transparency is laid over white, as viewers show it; 16-bit grey is scaled to 8 bits;
    palette, grey and CMYK are converted by Pillow.

    Raises:
        ValueError: mode F (floating point), or integers outside 0 .. 65535: no defined range.
    """
    if type(image) is Image.Image and image.mode == "RGB" and not image.info:
        return image
    upright = _upright(_to_rgb(image), _orientation(image))
    upright.info = {}  # what was applied shall not be applied again
    return upright


def decode_cell(cell: object, folder: Path, id: str, outside: bool) -> Image.Image:
    """Like `decode`, for a cell of an image table: bytes, or {"bytes": ..., "path": ...}.

    Bytes count before the path; a lone path is relative to `folder`, and below it unless `outside`. Raises BadImage
    also where there is neither.
    """
    encoded, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(encoded, bytes):
        return decode(encoded, id)
    if not isinstance(path, str) or not path:
        raise BadImage(id, "its row holds neither bytes nor a path")
    if not outside and not is_below(path):
        raise BadImage(id, f"its row names {path!r}; expected a path below {folder}, or --outside (outside=True)")
    return decode_file(folder / path, id)


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its extension, or where it has none, by how it begins."""
    if path.suffix or path.name.startswith("."):
        return is_image_name(path.name)
    try:
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            begins = file.read(12)
    except OSError:
        return False
    return begins.startswith(_BEGINNINGS) or begins[8:] == b"WEBP" or begins[4:] == b"ftypavif"


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: a known extension, not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _read(path: Path) -> bytes:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > _MUCH:
        require_memory("reading it", found.st_size)
    return path.read_bytes()


@functools.cache
def _formats() -> tuple[str, ...]:
    """All that Pillow reads, without PostScript, which it would hand to Ghostscript to run."""
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


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
    values = np.asarray(image).astype(np.int32)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"mode {image.mode} with values {values.min()} .. {values.max()}; expected 0 .. 65535")
    return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none: damaged metadata does not make a picture bad."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _reason(error: BaseException, encoded: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"damaged, or not an image format that Pillow knows ({len(encoded)} bytes, starting {encoded[:8]!r})"
    return f"{type(error).__name__}: {brief(error)}"

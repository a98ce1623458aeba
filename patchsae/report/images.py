"""Pictures of a report: heatmaps over images, outlined patches, thumbnails, data URIs."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, features

_THUMBNAIL = 128  # pixels of the longer side
_PALETTE = 256  # colours a paletted PNG can hold
_QUALITIES = (80, 65, 50, 35, 20)


def overlay(image: Image.Image, values: np.ndarray, vmax: float, size: int = _THUMBNAIL) -> Image.Image:
    """The image in grey with patch activations over it as light: RGB, longer side `size` pixels.

    values: float [h, w], activations >= 0 of one latent on the patch grid (CLS left out), upsampled bilinearly.
    vmax: the activation drawn at full strength, larger ones look alike; give pictures to be compared the same. 0 (a
    latent that never fired) draws no heat.
    """
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"values has shape {values.shape}; expected the patch grid [h, w]")
    if not np.isfinite(values).all():
        raise ValueError("values holds NaN or infinity; expected finite activations")
    base = thumbnail(image, size, enlarge=True)
    strength = np.clip(values / vmax, 0, 1) if vmax > 0 else np.zeros_like(values)
    fine = Image.fromarray(strength).resize(base.size, Image.Resampling.BILINEAR)
    return Image.fromarray(_blend(np.asarray(base, np.float32) / 255, np.asarray(fine)))


def outlined(image: Image.Image, patch: tuple[int, int], grid: tuple[int, ...]) -> Image.Image:
    """A copy with a frame around one patch, in row and column `patch` of a `grid` of rows and columns."""
    (row, column), (rows, columns) = patch, grid
    copy = image.convert("RGB")
    pen = ImageDraw.Draw(copy)
    left, right = (round(edge * image.width / columns) for edge in (column, column + 1))
    top, bottom = (round(edge * image.height / rows) for edge in (row, row + 1))
    for inset, color in enumerate(("black", "white", "white", "black")):  # seen on every ground
        box = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
        if box[0] <= box[2] and box[1] <= box[3]:
            pen.rectangle(box, outline=color)
    return copy


def thumbnail(image: Image.Image, size: int = _THUMBNAIL, enlarge: bool = False) -> Image.Image:
    """An RGB copy whose longer side is at most `size` pixels (exactly `size` with `enlarge`)."""
    scale = size / max(image.size)
    rgb = image.convert("RGB")
    if scale > 1 and not enlarge:
        return rgb
    width, height = (max(1, round(side * scale)) for side in image.size)
    return rgb.resize((width, height), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def data_uri(image: Image.Image, max_bytes: int | None = None) -> str:
    """The image as a data URI: lossless PNG for few colours (drawings), else WebP (JPEG where Pillow lacks it).

    max_bytes: lower the quality, as far as it goes, until the file is no larger.
    """
    rgb = image.convert("RGB")
    if rgb.getcolors(_PALETTE) is not None:
        drawing = _encoded(_paletted(rgb), "PNG")
        if max_bytes is None or len(drawing) <= max_bytes:
            return _uri(drawing, "png")
    kind = "webp" if features.check("webp") else "jpeg"
    for quality in _QUALITIES:
        photo = _encoded(rgb, kind, quality=quality)
        if max_bytes is None or len(photo) <= max_bytes:
            break
    return _uri(photo, kind)


def png_uri(content: bytes) -> str:
    """A finished PNG file as a data URI."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("content is not a PNG file")
    return _uri(content, "png")


def _blend(base: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """base [H, W, 3] and strength [H, W] in [0, 1] -> uint8 [H, W, 3]."""
    grey = base @ np.asarray([0.299, 0.587, 0.114], np.float32)
    # Half the colour and most of the light is left, so that shapes stay readable under the heat
    muted = 0.75 * (0.5 * grey[..., None] + 0.5 * base)
    # The dark end of the map would look like shadow in the image: start where it is already red
    heat = matplotlib.colormaps["inferno"](0.35 + 0.6 * strength)[..., :3]
    alpha = 0.85 * np.sqrt(strength)[..., None]
    blended: np.ndarray = np.round(255 * (muted * (1 - alpha) + heat * alpha)).astype(np.uint8)
    return blended


def _paletted(rgb: Image.Image) -> Image.Image:
    """At most 256 colours as indices, each colour kept exactly (Pillow's quantize may merge some)."""
    pixels = np.asarray(rgb)
    colors, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8))
    image.putpalette(colors.astype(np.uint8).tobytes())
    return image


def _encoded(image: Image.Image, kind: str, quality: int = 80) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality, optimize=True)
    return buffer.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""Small datasets of every layout, made of pictures that carry their own number."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image


def _draw(number: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (number % 256, number // 256, 7))


def _encode(number: int, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    _draw(number).save(out, format)
    return out.getvalue()


@pytest.fixture
def draw() -> Callable[..., Image.Image]:
    """draw(number) -> a picture that `number_of` reads back."""
    return _draw


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """encode(number) -> the same as PNG bytes."""
    return _encode


@pytest.fixture
def number_of() -> Callable[[Image.Image], int]:
    """The number that a picture was drawn with."""

    def read(image: Image.Image) -> int:
        low, high, mark = image.getpixel((0, 0))
        assert mark == 7
        return low + 256 * high

    return read


@pytest.fixture
def write_files(tmp_path: Path) -> Callable[[Mapping[str, int | bytes | str]], Path]:
    """write_files({"cat/1.png": 1, "notes.txt": "text", "bad.jpg": b"bytes"}) -> the folder that now holds them."""

    def write(files: Mapping[str, int | bytes | str]) -> Path:
        root = tmp_path / "root"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            encoded = _encode(content) if isinstance(content, int) else content
            path.write_bytes(encoded.encode() if isinstance(encoded, str) else encoded)
        return root

    return write

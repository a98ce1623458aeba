"""What the parts of a report show, decided here; page.html.j2 writes it as HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from patchsae import words
from patchsae.report import figures, images
from patchsae.report.markup import render

Picture: TypeAlias = "Image.Image | np.ndarray"

_TILE_BYTES = 5000  # of one gallery image: 60 latents x 10 images x 2 pictures stay under 10 MB with base64's third
_TILE_SIZE = 128  # pixels
_NUMERIC = re.compile(r"[-+–]?[\d.,]*%?( ?/ ?[-+–]?[\d.,]*%?)*")
_MAX_SVG = 1_500_000  # characters; a figure with more is cheaper as pixels


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery, with its heatmap below it where there is one."""

    image: Picture
    """PIL image, or uint8 array [H, W, 3]."""
    caption: str = ""
    heatmap: Picture | None = None


@dataclass(frozen=True)
class Row:
    """One latent (or class) of a gallery: title, statistics by name, pictures."""

    title: str
    statistics: Mapping[str, Any] = field(default_factory=dict)
    tiles: Sequence[Tile] = ()
    note: str = ""
    """A sentence in place of, or above, the pictures ("never fired")."""


def facts(values: Mapping[str, Any]) -> Markup:
    """The few numbers that matter, large, each with its name."""
    return render("facts", _in_words(values))


def figure(picture: Figure | Picture | bytes, caption: str, alt: str = "") -> Markup:
    """A numbered figure: a matplotlib Figure (SVG that follows light and dark), a picture, or the bytes of a PNG file.

    alt: what a reader who cannot see it should know; the caption where it is left out.
    """
    return render("figure", _plate(picture, alt or caption), caption)


def table(columns: Mapping[str, Sequence[Any] | np.ndarray], caption: str) -> Markup:
    """A numbered table from named columns of equal length; a long one scrolls under its header."""
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"columns have different lengths: { {name: len(v) for name, v in columns.items()} }")
    kinds = ["number" if _is_numeric(values) else "words" for values in columns.values()]
    rows = zip(*map(words.numbers, columns.values()), strict=True)
    cells = (zip(kinds, row, strict=True) for row in rows)
    return render("table", zip(kinds, columns, strict=True), cells, caption)


def gallery(tiles: Sequence[Tile], caption: str = "") -> Markup:
    """Pictures side by side."""
    return render("gallery", [_tile(tile) for tile in tiles], caption)


def galleries(rows: Sequence[Row], shown: int = 12) -> Markup:
    """Rows of pictures with their statistics; those after the first `shown` fold away."""
    written = [_row(row) for row in rows]
    return render("galleries", written[:shown], written[shown:])


def _in_words(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, words.number(value)) for name, value in values.items()]


def _plate(picture: Figure | Picture | bytes, alt: str) -> Markup:
    if isinstance(picture, Figure):
        drawn = figures.svg(picture, alt)
        if len(drawn.markup) <= _MAX_SVG:
            return Markup(drawn.markup)
        picture = figures.png(picture)
    uri = images.png_uri(picture) if isinstance(picture, bytes) else images.data_uri(_as_image(picture))
    return render("image", uri, alt)


def _row(row: Row) -> Markup:
    return render("row", row.title, _in_words(row.statistics), row.note, [_tile(tile) for tile in row.tiles])


def _tile(tile: Tile) -> Markup:
    name = tile.caption or "picture"
    pictures = [_tile_image(tile.image, name)]
    if tile.heatmap is not None:
        pictures.append(_tile_image(tile.heatmap, f"{name}: where the latent is active"))
    return render("tile", pictures, tile.caption)


def _tile_image(picture: Picture, alt: str) -> Markup:
    small = images.thumbnail(_as_image(picture), _TILE_SIZE)
    return render("image", images.data_uri(small, _TILE_BYTES), alt, small.size)


def _is_numeric(values: Sequence[Any] | np.ndarray) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(_looks_numeric(value) for value in present)


def _looks_numeric(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMERIC.fullmatch(value) is not None
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _as_image(picture: Picture) -> Image.Image:
    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture

"""HTML of the parts of a report. All text is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from patchsae import words
from patchsae.report import figures, images
from patchsae.report.text import escape

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


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; blank lines in `text` begin a new one."""
    mark = f' class="{escape(kind)}"' if kind else ""
    return "".join(f"<p{mark}>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def heading(text: str, level: int, anchor: str) -> str:
    """A heading that the table of contents can point at."""
    return f'<h{level} id="{escape(anchor)}">{escape(text)}</h{level}>'


def code(text: str) -> str:
    """Commands or other text set as it is."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def facts(values: Mapping[str, Any]) -> str:
    """The few numbers that matter, large, each with its name."""
    return f'<dl class="facts">{_definitions(values)}</dl>'


def figure(picture: Figure | Picture | bytes, caption: str, alt: str = "") -> str:
    """A numbered figure: a matplotlib Figure (SVG that follows light and dark), a picture, or the bytes of a PNG file.

    alt: what a reader who cannot see it should know; the caption where it is left out.
    """
    described = alt or caption
    if isinstance(picture, Figure):
        drawn = figures.svg(picture, described)
        inner = (
            drawn.markup
            if len(drawn.markup) <= _MAX_SVG
            else _image_tag(images.png_uri(figures.png(picture)), described)
        )
    elif isinstance(picture, bytes):
        inner = _image_tag(images.png_uri(picture), described)
    else:
        inner = _image_tag(images.data_uri(_as_image(picture)), described)
    return f'<figure class="numbered"><div class="plate">{inner}</div>{_caption(caption)}</figure>'


def table(columns: Mapping[str, Sequence[Any] | np.ndarray], caption: str) -> str:
    """A numbered table from named columns of equal length; a long one scrolls under its header."""
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"columns have different lengths: { {name: len(v) for name, v in columns.items()} }")
    kinds = ["number" if _is_numeric(values) else "words" for values in columns.values()]
    head = "".join(f'<th scope="col" class="{k}">{escape(name)}</th>' for name, k in zip(columns, kinds, strict=True))
    rows = zip(*map(words.numbers, columns.values()), strict=True)
    body = "".join(f"<tr>{''.join(_cells(row, kinds))}</tr>" for row in rows)
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    label = f'role="region" aria-label="{escape(caption)}"'
    scroll = f'<div class="scroll" tabindex="0" {label}>{inner}</div>'
    return f'<figure class="numbered table">{_caption(caption)}{scroll}</figure>'


def gallery(tiles: Sequence[Tile], caption: str = "") -> str:
    """Pictures side by side."""
    below = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f'<div class="gallery">{"".join(map(_tile, tiles))}</div>{below}'


def galleries(rows: Sequence[Row], shown: int = 12) -> str:
    """Rows of pictures with their statistics; those after the first `shown` fold away."""
    articles = [_row(row) for row in rows]
    folded = details(f"{len(articles) - shown:,} more", "".join(articles[shown:])) if len(articles) > shown else ""
    return f'<div class="rows">{"".join(articles[:shown])}{folded}</div>'


def details(summary: str, inner: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def _row(row: Row) -> str:
    header = f"<header><h4>{escape(row.title)}</h4><dl>{_definitions(row.statistics)}</dl></header>"
    note = paragraph(row.note, "note") if row.note else ""
    tiles = gallery(row.tiles) if row.tiles else ""
    return f'<article class="row">{header}{note}{tiles}</article>'


def _definitions(values: Mapping[str, Any]) -> str:
    items = ((name, words.number(value)) for name, value in values.items())
    return "".join(
        f'<div><dt>{escape(name)}</dt><dd title="{escape(value)}">{escape(value)}</dd></div>' for name, value in items
    )


def _tile(tile: Tile) -> str:
    name = tile.caption or "picture"
    pictures = _tile_image(tile.image, name)
    if tile.heatmap is not None:
        pictures += _tile_image(tile.heatmap, f"{name}: where the latent is active")
    said = escape(tile.caption)
    caption = f'<figcaption title="{said}">{said}</figcaption>' if said else ""
    return f'<figure class="tile">{pictures}{caption}</figure>'


def _tile_image(picture: Picture, alt: str) -> str:
    small = images.thumbnail(_as_image(picture), _TILE_SIZE)
    return _image_tag(images.data_uri(small, _TILE_BYTES), alt, small.size)


def _image_tag(uri: str, alt: str, size: tuple[int, int] | None = None) -> str:
    # width and height keep the page from jumping while pictures decode
    dimensions = f' width="{size[0]}" height="{size[1]}"' if size else ""
    return f'<img src="{uri}" alt="{escape(alt)}"{dimensions} loading="lazy" decoding="async">'


def _caption(caption: str) -> str:
    return f"<figcaption>{escape(caption)}</figcaption>"


def _cells(row: Sequence[str], kinds: Sequence[str]) -> list[str]:
    return [f'<td class="{kind}">{escape(text)}</td>' for text, kind in zip(row, kinds, strict=True)]


def _is_numeric(values: Sequence[Any] | np.ndarray) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(_looks_numeric(value) for value in present)


def _looks_numeric(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMERIC.fullmatch(value) is not None
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _as_image(picture: Picture) -> Image.Image:
    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture

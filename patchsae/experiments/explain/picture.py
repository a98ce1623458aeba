"""An explained image as one picture: the image, then a row per latent with its heatmap and its reference images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from patchsae.experiments.explain.result import Explained
from patchsae.experiments.pictures import CLS_ALONE, Activation, Seen, scale_of
from patchsae.report import figures, lettering
from patchsae.report.figures import INK, MUTED
from patchsae.report.images import outlined, overlay, thumbnail
from patchsae.words import number

_CELL, _GAP, _CAPTION = 1.28, 0.08, 0.2  # inches: a picture, between two of them, a line of letters
_WORDS = 1.75  # inches left of the heatmaps
_PIXELS = 256  # of a picture's side
_LIGHT = 64  # steps of the scale of light


def explained_picture(
    one: Explained, references: Sequence[Sequence[Seen]], patch: tuple[int, int] | None, notes: Sequence[str]
) -> Figure:
    """The picture of an image. references: of every latent in turn; notes: what else is to be said, a line each."""
    columns = 1 + max([2, *map(len, references)])
    width = _GAP + _WORDS + columns * (_CELL + _GAP)
    with figures.style():
        figure = figures.new(width, _head_height() + len(one.latents) * _row() + _GAP)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        _head(axes, one, patch, notes)
        for place, (latent, value, where) in enumerate(zip(one.latents, one.values, one.activations, strict=True)):
            top = _head_height() + place * _row()
            shown = references[place] if references else ()
            _words(axes, top, latent, value, where, shown)
            _picture(axes, 0, top, own_overlay(where, patch), "this image")
            scale = scale_of(shown)
            for column, seen in enumerate(shown, start=1):
                caption = CLS_ALONE if seen.where.on_cls_alone else seen.name
                _picture(axes, column, top, seen.where.overlay(scale, _PIXELS), caption)
        axes.set(xlim=(0, width), ylim=(figure.get_figheight(), 0), aspect="auto")
    return figure


def own_overlay(where: Activation, patch: tuple[int, int] | None) -> Image.Image:
    """Where a latent is active in the explained image, on a scale of its own, the chosen patch outlined."""
    return marked(where.overlay(float(where.grid.max()), _PIXELS), where, patch)


def marked(picture: Image.Image, where: Activation, patch: tuple[int, int] | None) -> Image.Image:
    """A picture of the image with the chosen patch outlined."""
    return picture if patch is None else outlined(picture, patch, where.grid.shape)


def _row() -> float:
    return _CELL + _CAPTION + _GAP


def _head_height() -> float:
    return _row() + 2 * _CAPTION


def _head(axes: Axes, one: Explained, patch: tuple[int, int] | None, notes: Sequence[str]) -> None:
    _write(axes, _GAP, _GAP + _CAPTION, lettering.short(one.name, 90), fontsize=10, fontweight="bold")
    lines = [
        "The latents most active on the image, by their mean over its tokens."
        if patch is None
        else f"The latents most active on the patch in row {patch[0]}, column {patch[1]} (outlined).",
        "Light: activation on the patches, from none to the number beside the latent, for each on a scale of its own.",
        *notes,
    ]
    for place, line in enumerate(lines, start=2):
        _write(axes, _GAP + _CELL + _GAP, _GAP + place * _CAPTION, line, color=MUTED)
    if one.activations:
        image = thumbnail(one.activations[0].image, _PIXELS, enlarge=True)
        top = _GAP + 1.4 * _CAPTION
        _place(axes, _GAP, top, marked(image, one.activations[0], patch), _CELL)
    left, top = _GAP + _CELL + _GAP, _GAP + _row() - 1.4 * _CAPTION
    light = overlay(Image.new("RGB", (_LIGHT, 8), "#808080"), np.linspace(0, 1, _LIGHT)[None], 1.0, _LIGHT)
    _write(axes, left, top + 0.7 * _CAPTION, "none", color=MUTED)
    _place(axes, left + 0.4, top, light, 1.2)
    _write(axes, left + 1.7, top + 0.7 * _CAPTION, "largest", color=MUTED)


def _words(axes: Axes, top: float, latent: int, value: float, where: Activation, shown: Sequence[Seen]) -> None:
    largest = float(where.grid.max())
    _write(axes, _GAP, top + _CAPTION, f"latent {latent}", fontweight="bold", fontsize=10)
    lines = [f"activation {number(value)}", f"on CLS {number(where.cls)}"]
    lines.append(f"no patch: {CLS_ALONE}" if where.on_cls_alone else f"light up to {number(largest)}")
    if shown:
        lines.append(f"in references up to {number(scale_of(shown))}")
    for place, line in enumerate(lines, start=2):
        _write(axes, _GAP, top + place * _CAPTION, line, color=MUTED)


def _picture(axes: Axes, column: int, top: float, picture: Image.Image, caption: str) -> None:
    left = _GAP + _WORDS + column * (_CELL + _GAP)
    _place(axes, left, top, picture, _CELL)
    _write(axes, left, top + _CELL + 0.75 * _CAPTION, lettering.short(caption, 19), color=MUTED, fontsize=7.5)


def _place(axes: Axes, left: float, top: float, picture: Image.Image, side: float) -> None:
    """Draw a picture whose longer side is `side` inches."""
    scale = side / max(picture.size)
    right, bottom = left + scale * picture.width, top + scale * picture.height
    axes.imshow(np.asarray(picture), extent=(left, right, bottom, top), interpolation="lanczos")


def _write(axes: Axes, left: float, baseline: float, line: str, color: str = INK, **look: Any) -> None:
    axes.text(left, baseline, line, color=color, parse_math=False, **{"fontsize": 8.5, **look})

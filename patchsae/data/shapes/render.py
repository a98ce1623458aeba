"""Draws a scene: anti-aliased shapes from signed distances, textures, shading and backgrounds, in numpy.

Every drawing function works in shares of the picture's side, so the same scene can be drawn at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from patchsae.data.shapes.factors import Floats, Scene, ShapeObject, hashed_uniforms

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (222, 24, 30),
        "orange": (255, 130, 0),
        "yellow": (248, 212, 0),
        "green": (20, 190, 40),
        "cyan": (0, 226, 226),
        "blue": (20, 60, 240),
        "purple": (125, 20, 200),
        "pink": (255, 110, 190),
    }
)


def render(scene: Scene, size: int) -> np.ndarray:
    """The picture, uint8 [size, size, 3]."""
    picture = _BACKGROUNDS[scene.background](size, scene.noise)
    for thing in scene.objects:
        distance, u, v = _local(thing, size)
        cover = _cover(distance, size)[..., None]
        picture = (1 - cover) * picture + cover * _surface(thing, scene.style, distance, u, v, size)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def coverage(thing: ShapeObject, size: int) -> Floats:
    """Share of every pixel that the object covers, float64 [size, size]."""
    return _cover(_local(thing, size)[0], size)


def _local(thing: ShapeObject, size: int) -> tuple[Floats, Floats, Floats]:
    """Signed distance to the object's edge (negative inside) and the object's own coordinates (1 = its radius)."""
    centres = (np.arange(size) + 0.5) / size
    x, y = (centres[None, :] - thing.x) / thing.radius, (centres[:, None] - thing.y) / thing.radius
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    return _SHAPES[thing.shape](u, v) * thing.radius, u, v


def _cover(distance: Floats, size: int) -> Floats:
    return np.clip(0.5 - distance * size, 0, 1)


def _surface(thing: ShapeObject, style: str, distance: Floats, u: Floats, v: Floats, size: int) -> Floats:
    """The object's own colours, float64 [size, size, 3], defined everywhere and shown where the object covers."""
    colour = _textured(thing, u, v, size)
    if style == "shaded":
        light = np.clip(0.78 - 0.42 * (u + v), 0.25, 1.15)[..., None]
        shine = np.exp(-((u + 0.32) ** 2 + (v + 0.36) ** 2) / 0.05)[..., None]
        colour = np.clip(colour * light, 0, 1) * (1 - 0.8 * shine) + 0.8 * shine
    if style == "outline":
        band = np.clip(distance * size + 0.11 * thing.radius * size + 0.5, 0, 1)[..., None]
        colour = colour + band * (1 - colour)
    return colour


def _textured(thing: ShapeObject, u: Floats, v: Floats, size: int) -> Floats:
    """The object's colour with its pattern, float64 [size, size, 3]: dark stripes and dots, light checks and rings.

    Patterns have the same grain on large and small objects.
    """
    base = np.array(COLOURS[thing.colour]) / 255
    x, y = u * thing.radius, v * thing.radius
    cos, sin = np.cos(thing.texture_angle), np.sin(thing.texture_angle)
    a, b = cos * x + sin * y + 0.1 * thing.texture_phase, cos * y - sin * x
    if thing.texture == "striped":
        return _inked(base, 0.28 * base, np.cos(2 * np.pi * a / 0.094), 0.094 * size)
    if thing.texture == "dotted":
        dot = 0.031 - 0.1 * np.hypot((a / 0.1) % 1 - 0.5, (b / 0.1) % 1 - 0.5)
        return _inked(base, 0.28 * base, dot, 2 * np.pi * size)
    light = 0.15 * base + 0.85
    if thing.texture == "checkered":
        return _inked(base, light, np.cos(np.pi * a / 0.075) * np.cos(np.pi * b / 0.075), 0.11 * size)
    if thing.texture == "ringed":
        ring = np.cos(2 * np.pi * (np.hypot(x, y) / 0.094 + thing.texture_phase)) - 0.5
        return _inked(base, light, ring, 0.094 * size)
    return base + np.zeros((size, size, 1))


def _inked(base: Floats, ink: Floats, wave: Floats, period: float) -> Floats:
    """`ink` where a wave of amplitude 1 and a period in pixels is positive, with edges about one pixel wide."""
    share = np.clip(wave * period / (2 * np.pi) + 0.5, 0, 1)[..., None]
    return base + share * (ink - base)


# Shapes: signed distance to the edge at (u, v), both in radii of the object, v down. None reaches farther than 1.


def _circle(u: Floats, v: Floats) -> Floats:
    return np.hypot(u, v) - 0.92


def _square(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.abs(u), np.abs(v)) - 0.7


def _triangle(u: Floats, v: Floats) -> Floats:
    return np.maximum(v - 0.5, (np.abs(u) * math.sqrt(3) - v) / 2 - 0.5)


def _star(u: Floats, v: Floats) -> Floats:
    # five-fold symmetry and a mirror fold the plane to one edge, from the tip to the inner corner at 36 degrees
    turn = 2 * np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + turn / 2) % turn - turn / 2)
    radius = np.hypot(u, v)
    inner = 0.45 * np.array([np.sin(turn / 2), np.cos(turn / 2)])
    edge = inner - np.array([0.0, 1.0])
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    distance: Floats = radius * np.sin(angle) * normal[0] + (radius * np.cos(angle) - 1.0) * normal[1]
    return distance


def _heart(u: Floats, v: Floats) -> Floats:
    # a square on its corner with a half disc on each upper side
    side, v, centre = np.abs(u), v - 0.12, 0.38
    corner = (side + np.abs(v)) / math.sqrt(2) - centre * math.sqrt(2)
    lobe = np.hypot(side - centre, v + centre) - centre * math.sqrt(2)
    return np.minimum(corner, lobe)


def _cross(u: Floats, v: Floats) -> Floats:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.36, v - 0.92), np.maximum(v - 0.36, u - 0.92))


def _ring(u: Floats, v: Floats) -> Floats:
    return np.abs(np.hypot(u, v) - 0.68) - 0.29


def _moon(u: Floats, v: Floats) -> Floats:
    return np.maximum(np.hypot(u, v) - 0.96, 0.72 - np.hypot(u - 0.5, v))


_SHAPES: Mapping[str, Callable[[Floats, Floats], Floats]] = MappingProxyType(
    {
        "circle": _circle,
        "square": _square,
        "triangle": _triangle,
        "star": _star,
        "heart": _heart,
        "cross": _cross,
        "ring": _ring,
        "moon": _moon,
    }
)


def _grain(size: int, noise: int) -> Floats:
    """Uniform noise, float64 [size, size]: the same cells at every size up to the resolution."""
    return hashed_uniforms(noise, np.arange(size), np.arange(size))


def _grass(size: int, noise: int) -> Floats:
    grain = _grain(size, noise)
    blades = (grain + np.roll(grain, 1, 0) + np.roll(grain, 2, 0) + np.roll(grain, 3, 0)) / 4
    return np.array([0.20, 0.33, 0.13]) * (0.45 + 1.1 * blades)[..., None]


def _sky(size: int, noise: int) -> Floats:
    y, x = np.arange(size)[:, None] / size, np.arange(size)[None, :] / size
    cloud = np.zeros((size, size))
    for cx, cy, width in hashed_uniforms(noise, np.arange(5), np.arange(3)):
        cloud += np.exp(-(((x - cx) / (0.10 + 0.14 * width)) ** 2) - ((y - cy) / 0.07) ** 2)
    blue: Floats = np.array([0.50, 0.66, 0.84]) + (y * 0.8)[..., None] * np.array([0.25, 0.17, 0.08])
    return blue + np.minimum(cloud, 0.9)[..., None] * (0.93 - blue)


def _night(size: int, noise: int) -> Floats:
    stars = np.clip((_grain(size, noise) - 0.985) / 0.01, 0, 1)[..., None]
    light: Floats = stars * np.array([0.75, 0.75, 0.6])
    return np.array([0.06, 0.07, 0.16]) + light


def _bricks(size: int, noise: int) -> Floats:
    shift = hashed_uniforms(noise, np.arange(1), np.arange(2))[0]
    y = np.arange(size)[:, None] / size * 8 + shift[0]
    x = np.arange(size)[None, :] / size * 4 + shift[1] + 0.5 * (np.floor(y) % 2)
    tones = hashed_uniforms(noise, np.arange(1, 11), np.arange(8))
    tone = tones[np.floor(y).astype(int), np.floor(x).astype(int)]
    mortar = ((y % 1 < 0.16) | (x % 1 < 0.08))[..., None]
    brick = np.array([0.47, 0.35, 0.31]) * (0.75 + 0.45 * tone)[..., None]
    return np.where(mortar, np.array([0.68, 0.66, 0.63]), brick)


def _sand(size: int, noise: int) -> Floats:
    shift = hashed_uniforms(noise, np.arange(1), np.arange(2))[0]
    y, x = np.arange(size)[:, None] / size, np.arange(size)[None, :] / size
    ripple: Floats = np.sin(2 * np.pi * (y * 7 + 0.25 * np.sin(2 * np.pi * (x * 1.5 + shift[0])) + shift[1]))
    light = 0.94 + 0.05 * ripple + 0.14 * (_grain(size, noise) - 0.5)
    return np.array([0.83, 0.74, 0.57]) * light[..., None]


_BACKGROUNDS: Mapping[str, Callable[[int, int], Floats]] = MappingProxyType(
    {"grass": _grass, "sky": _sky, "night": _night, "bricks": _bricks, "sand": _sand}
)

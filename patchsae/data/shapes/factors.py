"""What a picture of the shapes world is made of: factor values, held-out combinations, and the scene of an index.

A scene is a pure function of (seed, split, index): every random number is a hash of those and a slot number, so it
does not depend on the process, on the order of reading, or on numpy's generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]  # arithmetic on a plain np.ndarray is Any to mypy

FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon"),
        "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
        "texture": ("plain", "striped", "dotted", "checkered", "ringed"),
        "background": ("grass", "sky", "night", "bricks", "sand"),
        "style": ("flat", "outline", "shaded"),
    }
)
"""The values of every factor, in label order. An object has the first three, the picture has background and style."""

OBJECT_FACTORS = ("shape", "colour", "texture")
SPLITS = ("train", "val", "test")
TWO_OBJECTS = 0.4
"""Share of the pictures that have a second, smaller object."""

_PLACES = 24  # places tried for the second object before it goes into the corner farthest from the first


@dataclass(frozen=True)
class ShapeObject:
    """One object. Lengths are shares of the picture's side, `x` to the right and `y` down; angles are in radians."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    texture_angle: float
    texture_phase: float


@dataclass(frozen=True)
class Scene:
    """All that a picture shows: the main (large) object first, then the small one if there is one."""

    objects: tuple[ShapeObject, ...]
    background: str
    style: str
    noise: int
    """Key of the background's grain."""

    @property
    def main(self) -> ShapeObject:
        return self.objects[0]

    def value(self, factor: str) -> str:
        """The picture's value of `factor`: the main object's, or the picture's own."""
        value: str = getattr(self.main if factor in OBJECT_FACTORS else self, factor)
        return value


def hashed_uniforms(key: int, index: np.ndarray, slots: np.ndarray) -> Floats:
    """Uniform numbers in [0, 1), float64 [len(index), len(slots)].

    splitmix64 (Steele, Lea, Flood 2014) of (key, index, slot), its upper 53 bits.
    """
    with np.errstate(over="ignore"):
        rows = _mix(np.asarray(index, np.uint64) + _mix(np.uint64(key)))
        bits = _mix(rows[:, None] + _mix(np.asarray(slots, np.uint64) + np.uint64(1))[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def split_of(shape: str, colour: str, texture: str) -> str:
    """The one split in which an object of this combination may appear.

    An eighth of the combinations is held out for val and an eighth for test, as diagonals of the shape x colour
    square that move with the texture: every value of every factor, and every (shape, texture) pair, is in every
    split.
    """
    positions = [FACTORS[f].index(v) for f, v in zip(OBJECT_FACTORS, (shape, colour, texture), strict=True)]
    return {0: "val", 4: "test"}.get((positions[0] + 3 * positions[1] + 2 * positions[2]) % 8, "train")


def combinations(split: str) -> list[tuple[str, str, str]]:
    """All (shape, colour, texture) of a split, in a fixed order."""
    return [
        (s, c, t)
        for s in FACTORS["shape"]
        for c in FACTORS["colour"]
        for t in FACTORS["texture"]
        if split_of(s, c, t) == split
    ]


@dataclass(frozen=True)
class SceneSampler:
    """Scenes of one split, optionally restricted to some values of some factors (of the main object or of the
    picture).

    Raises ValueError where no combination of the split has the wanted values.
    """

    split: str
    seed: int
    only: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not len(self._main_combinations):
            raise ValueError(f"no combination of split {self.split!r} has {dict(self.only)}; the other splits hold it")

    def values(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Label numbers of the main object and the picture, int64 [len(index)] per factor, without making scenes."""
        u = hashed_uniforms(self._key, index, np.arange(3))
        main = self._main_combinations[_pick(u[:, 0], len(self._main_combinations))]
        labels = {f: main[:, column] for column, f in enumerate(OBJECT_FACTORS)}
        for slot, factor in ((1, "background"), (2, "style")):
            numbers = self._allowed(factor)
            labels[factor] = numbers[_pick(u[:, slot], len(numbers))]
        return labels

    def scene(self, index: int) -> Scene:
        """The scene of `index` (any integer >= 0)."""
        labels = {f: FACTORS[f][int(v[0])] for f, v in self.values(np.array([index])).items()}
        u = hashed_uniforms(self._key, np.array([index]), np.arange(3, 20 + 2 * _PLACES))[0]
        two = u[0] < TWO_OBJECTS
        objects = [_large((labels["shape"], labels["colour"], labels["texture"]), u[1:7], smaller=two)]
        if two:
            other = self._all_combinations[_pick(u[7], len(self._all_combinations))]
            objects.append(_small(other, u[8:12], u[17:].reshape(-1, 2), objects[0]))
        return Scene(tuple(objects), labels["background"], labels["style"], noise=int(u[16] * 2**53))

    @property
    def _key(self) -> int:
        return self.seed * len(SPLITS) + SPLITS.index(self.split)

    @cached_property
    def _all_combinations(self) -> list[tuple[str, str, str]]:
        return combinations(self.split)

    @cached_property
    def _main_combinations(self) -> np.ndarray:
        """Label numbers, int64 [combinations, 3]."""
        every = [[FACTORS[f].index(v) for f, v in zip(OBJECT_FACTORS, c, strict=True)] for c in self._all_combinations]
        table = np.array(every, np.int64)
        return table[np.all([np.isin(table[:, n], self._allowed(f)) for n, f in enumerate(OBJECT_FACTORS)], axis=0)]

    def _allowed(self, factor: str) -> np.ndarray:
        return np.array([FACTORS[factor].index(v) for v in dict(self.only).get(factor, FACTORS[factor])])


def _large(values: tuple[str, str, str], u: np.ndarray, smaller: bool) -> ShapeObject:
    radius = 0.23 + 0.05 * u[0] if smaller else 0.29 + 0.11 * u[0]
    x, y = radius + 0.02 + (0.96 - 2 * radius) * u[1:3]
    return ShapeObject(*values, float(x), float(y), float(radius), *_angles(u[3:6]))


def _small(values: tuple[str, str, str], u: np.ndarray, places: np.ndarray, main: ShapeObject) -> ShapeObject:
    radius = 0.12 + 0.03 * u[0]
    near, far = radius + 0.02, 0.98 - radius
    centres = near + (far - near) * places
    corner = [near if main.x > 0.5 else far, near if main.y > 0.5 else far]
    centres = np.vstack([centres, corner])
    apart = np.hypot(centres[:, 0] - main.x, centres[:, 1] - main.y) > radius + main.radius + 0.02
    x, y = centres[int(np.argmax(apart))] if apart.any() else corner
    return ShapeObject(*values, float(x), float(y), float(radius), *_angles(u[1:4]))


def _angles(u: np.ndarray) -> tuple[float, float, float]:
    return float((u[0] - 0.5) * np.pi / 5), float(u[1] * np.pi), float(u[2])


def _pick(u: Floats, n: int) -> np.ndarray:
    return np.floor(u * n).astype(np.int64)


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))

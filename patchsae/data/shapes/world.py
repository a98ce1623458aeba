"""The shapes world as an image dataset with ground truth: factor values, captions and the mask of every factor."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from patchsae.data.base import DataError, ImageDataset, Sample, position
from patchsae.data.shapes.captions import SENTENCES, class_name, describe
from patchsae.data.shapes.factors import FACTORS, OBJECT_FACTORS, SPLITS, Scene, SceneSampler, ShapeObject
from patchsae.data.shapes.render import coverage, render
from patchsae.disk.claims import require_memory


class ShapesWorld(ImageDataset):
    """Rendered pictures of one or two objects on a background.

    Picture `i` is a pure function of (seed, split, only, i); `n` only says how many there are. Every object of a
    picture has a (shape, colour, texture) combination of its split, and no combination belongs to two splits.

    Args:
        split: "train", "val" or "test".
        label: the factor (a key of FACTORS) that is the class; the main object's, or the picture's. Several, separated
            by commas, make every combination of their values a class; the last one varies fastest.
        n: number of pictures.
        seed: an integer, 0 <= seed < 2**62.
        size: side of the pictures in pixels.
        only: values that a factor is restricted to, e.g. {"style": ["outline"]}; the shape, colour and texture of the
            main object, not of the small one.

    Raises:
        DataError: an unknown split, factor or value, a number out of range, or a restriction that leaves no
            combination.
    """

    def __init__(
        self,
        split: str = "train",
        label: str = "shape",
        n: int = 10_000,
        seed: int = 0,
        size: int = 64,
        only: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        wanted = {f: tuple(v) for f, v in sorted((only or {}).items())}
        _check_choice("split", split, SPLITS)
        parts = label.split(",")
        for part in parts:
            _check_choice("label", part, tuple(FACTORS))
        if len(set(parts)) < len(parts):
            raise DataError(f"label is {label!r}; expected every factor once")
        for factor, values in wanted.items():
            _check_choice("only", factor, tuple(FACTORS))
            for value in values:
                _check_choice(factor, value, FACTORS[factor])
        for argument, number, least in (("n", n, 0), ("seed", seed, 0), ("size", size, 8)):
            if not least <= number < 2**62:
                raise DataError(f"{argument} is {number}; expected an integer >= {least} and < 2**62")
        require_memory(f"shapes of n = {n:,} pictures of {size:,} x {size:,} pixels", 200 * n + 40 * size * size)
        try:
            self.sampler = SceneSampler(split, seed, tuple(wanted.items()))
        except ValueError as error:
            raise DataError(str(error)) from None
        self.split, self.label, self.seed, self.size = split, label, seed, size
        self._factor_labels = {f: v.astype(np.int8) for f, v in self.sampler.values(np.arange(n)).items()}
        restrictions = "".join(f"&{f}={','.join(v)}" for f, v in wanted.items())
        name = f"shapes:{split}?label={label}&seed={seed}&size={size}{restrictions}"
        labels = np.zeros(n, np.int64)
        for part in parts:
            labels = labels * len(FACTORS[part]) + self._factor_labels[part]
        combinations = itertools.product(*(FACTORS[part] for part in parts))
        super().__init__(name, labels, [class_name(dict(zip(parts, v, strict=True))) for v in combinations])

    def ids(self, i: int) -> str:
        return f"{self.split}-{self.seed}-{position(i, len(self)):06d}"

    def sample(self, i: int) -> Sample:
        return Sample(Image.fromarray(self.pixels(i)), int(self.labels[i]), self.ids(i))

    def pixels(self, i: int) -> np.ndarray:
        """The picture, uint8 [size, size, 3]."""
        return render(self.factors(i), self.size)

    def factors(self, i: int) -> Scene:
        """What picture `i` shows: its objects with their factor values and places, its background and its style."""
        return self.sampler.scene(position(i, len(self)))

    def factor_labels(self, factor: str) -> np.ndarray:
        """Label numbers by another factor than the dataset's own, int64 [n], positions in FACTORS[factor]."""
        _check_choice("factor", factor, tuple(FACTORS))
        return self._factor_labels[factor].astype(np.int64)

    def caption(self, i: int) -> str:
        """A sentence that names every factor of picture `i`; its form varies with `i`."""
        scene = self.factors(i)
        return SENTENCES[scene.noise % len(SENTENCES)].format(describe(scene))

    def mask(self, i: int, factor: str, value: str | None = None) -> np.ndarray:
        """Where picture `i` shows `factor`, bool [size, size]: pixels that are covered by half or more.

        shape, colour, texture: the main object, or every object that has `value`. style: every object. background:
        all that no object covers. A `value` that the picture does not have is nowhere.
        """
        _check_choice("factor", factor, tuple(FACTORS))
        if value is not None:
            _check_choice(factor, value, FACTORS[factor])
        scene = self.factors(i)
        if factor in OBJECT_FACTORS:
            shown = [scene.main] if value is None else [o for o in scene.objects if getattr(o, factor) == value]
            return self._covered(shown)
        if value not in (None, scene.value(factor)):
            return np.zeros((self.size, self.size), bool)
        return self._covered(scene.objects) ^ (factor == "background")

    def patch_mask(self, i: int, factor: str, grid: tuple[int, int], value: str | None = None) -> np.ndarray:
        """Share of every patch that `mask` covers, float64 [grid[0], grid[1]].

        Raises:
            DataError: `grid` does not divide the picture.
        """
        rows, columns = grid
        if rows < 1 or columns < 1 or self.size % rows or self.size % columns:
            raise DataError(f"grid is {grid}; expected numbers that divide the picture's side, {self.size}")
        shares: np.ndarray = self.mask(i, factor, value).reshape(rows, self.size // rows, columns, -1).mean((1, 3))
        return shares

    def _covered(self, objects: Iterable[ShapeObject]) -> np.ndarray:
        covers = [coverage(o, self.size) >= 0.5 for o in objects]
        covered: np.ndarray = np.any([np.zeros((self.size, self.size), bool), *covers], axis=0)
        return covered


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"{argument} is {value!r}; expected one of {', '.join(choices)}")

"""Which texts a batch of images is contrasted with.

A batch has several groups of texts. Within a group all texts say the same kind of thing (the colour; all factors;
the class), so two images either share a text or are told apart by it: every image has one positive text, and a text
may have many images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip

from patchsae.data.base import DataError, ImageDataset
from patchsae.data.shapes import FACTORS, Scene, ShapesWorld, describe
from patchsae.data.shapes.captions import SENTENCES

NAME_TEMPLATES = (
    "a photo of a {}.",
    "{}",
    "a photo of the {}.",
    "a picture of a {}",
    "an image of {}.",
    "{} texture.",
)


@dataclass(frozen=True)
class TextGroup:
    """Texts that differ in meaning, and which of them each image of the batch has."""

    texts: tuple[str, ...]
    positive: np.ndarray
    """int64 [B], positions in `texts`."""


def text_groups(dataset: ImageDataset, index: np.ndarray, rng: random.Random) -> list[TextGroup]:
    """The groups of the images at `index` (int [B]).

    Shapes world: a group for every factor, and one with full captions or with those of two to four factors.
    Other datasets: one group of class names in templates.

    Raises:
        DataError: a dataset without labels.
    """
    if isinstance(dataset, ShapesWorld):
        return _shape_groups([dataset.factors(int(i)) for i in index], rng)
    if dataset.classnames is None or (dataset.labels[index] < 0).any():
        raise DataError(f"dataset {dataset.name!r} has images without label; expected a class for every image")
    names = dataset.classnames
    return [_group([int(label) for label in dataset.labels[index]], lambda label: named(names[label], rng))]


def named(name: str, rng: random.Random) -> str:
    """A class name in a template: half the time one of the plain forms, else one of OpenAI's 80 for ImageNet."""
    if rng.random() < 0.5:
        return rng.choice(NAME_TEMPLATES).format(name)
    template: Callable[[str], str] = rng.choice(open_clip.OPENAI_IMAGENET_TEMPLATES)
    return template(name)


def _shape_groups(scenes: list[Scene], rng: random.Random) -> list[TextGroup]:
    groups = [_factor_group(scenes, factor, rng) for factor in FACTORS]
    if rng.random() < 0.5:
        return [*groups, _phrase_group(scenes, list(FACTORS), True, rng)]
    some = rng.sample(list(FACTORS), rng.choice((2, 3, 4)))
    return [*groups, _phrase_group(scenes, some, False, rng)]


def _factor_group(scenes: list[Scene], factor: str, rng: random.Random) -> TextGroup:
    def text(value: str) -> str:
        if rng.random() < 0.75:
            return named(value, rng)
        scene = next(s for s in scenes if s.value(factor) == value)
        return rng.choice(SENTENCES).format(describe(scene, [factor], second=False))

    return _group([s.value(factor) for s in scenes], text)


def _phrase_group(scenes: list[Scene], factors: list[str], second: bool, rng: random.Random) -> TextGroup:
    plain = [describe(s, factors, second) for s in scenes]
    return _group(plain, lambda phrase: rng.choice(SENTENCES).format(phrase))


def _group(meanings: list[Any], text: Callable[..., str]) -> TextGroup:
    """One text per meaning, in order of first appearance."""
    places: dict[Hashable, int] = {}
    positive = [places.setdefault(meaning, len(places)) for meaning in meanings]
    return TextGroup(tuple(text(meaning) for meaning in places), np.array(positive, np.int64))

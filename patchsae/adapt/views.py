"""The pictures of a training run: every image once per epoch, in a new order, cropped and flipped anew.

A view is fixed by (seed, epoch, position), so that neither workers nor a restart can change it.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from patchsae.adapt.recipes import Augment
from patchsae.data import ImageDataset, Sample, shuffled_order
from patchsae.data.base import DataError

AREA = (0.08, 1.0)  # share of the picture that a crop covers
ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class Views(ImageDataset):
    """``epochs`` passes over a dataset as one: place ``epoch * n + i`` is image i as that epoch shows it.

    Args:
        images: n images.
        epochs: passes.
        size: height and width of the views.
        seed: of the crops.
        augment: "crop-flip", or "none": every epoch shows the images as they are.
    """

    def __init__(
        self, images: ImageDataset, epochs: int, size: tuple[int, int], seed: int, augment: Augment = "crop-flip"
    ) -> None:
        super().__init__(images.name, np.tile(images.labels, epochs), images.classnames)
        self.images, self.size, self.seed, self.augment = images, size, seed, augment

    def ids(self, i: int) -> str:
        return self.images.ids(i % len(self.images))

    def sample(self, i: int) -> Sample:
        epoch, position = divmod(i, len(self.images))
        sample = self.images.sample(position)
        if self.augment == "none":
            return sample
        generator = np.random.default_rng([self.seed, epoch, position])
        return Sample(crop_and_flip(sample.image, self.size, generator), sample.label, sample.id)


def crop_and_flip(image: Image.Image, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """A random crop resized to ``size`` (height, width) by bicubic interpolation, mirrored half of the time.

    The crop is that of Inception (Szegedy et al. 2015) as torchvision defines it: an area of 8 to 100 %, the logarithm
    of the aspect ratio uniform between 3/4 and 4/3, ten attempts, then the largest centred crop within these ratios.
    """
    left, top, width, height = _crop(image.width, image.height, generator)
    view = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.BICUBIC)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else view


def epoch_order(n: int, epoch: int, batch_size: int, seed: int) -> np.ndarray:
    """Places in `Views` of one epoch, int64: a shuffle of the n images without those that fill no batch, as Dassl drops
    them. Fewer images than ``batch_size`` are one batch."""
    if n < 1:
        raise DataError("the training set is empty; expected at least one image")
    used = n // batch_size * batch_size or n
    return epoch * n + shuffled_order(n, epoch, seed)[:used]


def _crop(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height)."""
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.integers(0, width - w + 1), generator.integers(0, height - h + 1)
            return int(left), int(top), w, h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, w, h

"""Few-shot training sets: the very images that CoOp, CoCoOp and MaPLe draw for the same seed.

What their public code does (`generate_fewshot_dataset` and `set_random_seed` of Dassl.pytorch, the datasets of CoOp),
and what is therefore done here:

- Python's `random` is seeded once, and nothing uses it between that and the draw where a `split_zhou_*.json` is read.
- Images are grouped by label, labels in the order in which they first appear, images in the order of the list.
- A class of at least `shots` images gives `random.sample(images, shots)`; a smaller one gives all it has, in the order
  of the list, and uses no randomness (before 9 October 2021 Dassl repeated images there). The groups follow one
  another.
- Train is drawn first, then val from where the stream stands, with min(shots, 4). ImageNet draws no val.
- The draw is over all classes; base or novel ones are taken from it afterwards: `base_novel(few_shot(train, ...))`.
  Drawing from the base classes alone agrees only as far as the list has all of them before the first novel one.

ImageNet has no list: CoOp lists its folders in the order of the file system, so that its draw differs from disk to
disk. Here images of a folder are sorted by name, and the draw repeats itself everywhere.
"""

from __future__ import annotations

import random

import numpy as np

from patchsae.data.base import DataError, ImageDataset

_VAL_SHOTS = 4


def few_shot(dataset: ImageDataset, shots: int, seed: int) -> ImageDataset:
    """`shots` images of every class, or all of a class that has fewer.

    The global random state is neither used nor changed.

    Args:
        dataset: a train split in the order of its list.
        shots: images per class; 1, 2, 4, 8 and 16 are usual.
        seed: CoOp's SEED; 1, 2 and 3 are usual.

    Raises:
        DataError: shots or seed out of range, or images without label.
    """
    return _draw(dataset, shots, _stream(seed))


def few_shot_pair(train: ImageDataset, val: ImageDataset, shots: int, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """(train, val): `few_shot` of both from one random stream, val with min(shots, 4).

    Raises:
        DataError: as `few_shot`.
    """
    stream = _stream(seed)
    return _draw(train, shots, stream), _draw(val, min(shots, _VAL_SHOTS), stream)


def _stream(seed: int) -> random.Random:
    """What `random.seed(seed)` makes of the global stream. Negative seeds mean "unseeded" to CoOp."""
    if seed < 0:
        raise DataError(f"seed is {seed}; expected 0 or more")
    return random.Random(seed)


def _draw(dataset: ImageDataset, shots: int, stream: random.Random) -> ImageDataset:
    if shots < 1:
        raise DataError(f"shots is {shots}; expected at least 1 image per class")
    unlabelled = int((dataset.labels < 0).sum())
    if unlabelled:
        raise DataError(f"{dataset.name} has {unlabelled} images without label; expected a class for every image")
    drawn: list[int] = []
    for positions in _by_class(dataset.labels):
        drawn += stream.sample(positions, shots) if len(positions) >= shots else positions
    return dataset.subset(np.array(drawn, np.int64))


def _by_class(labels: np.ndarray) -> list[list[int]]:
    """Positions by label, labels in the order of their first appearance."""
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(position)
    return list(groups.values())

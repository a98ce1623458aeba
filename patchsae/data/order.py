"""In which order, and how much of, a dataset is visited: deterministic from a seed."""

from __future__ import annotations

import numpy as np

from patchsae.data.base import DataError, ImageDataset, ReadGroups


def shuffled_order(n: int, epoch: int, seed: int, groups: ReadGroups | None = None) -> np.ndarray:
    """A permutation of 0 .. n - 1, int64 [n], fixed by (n, epoch, seed, groups).

    With `groups` (a dataset's `read_groups`) the groups are shuffled, and then the rows within every run of
    `groups.together` of them: each group is read once, where a full shuffle would read it once per row.

    Raises:
        DataError: n, epoch or seed below 0, or groups of another size.
    """
    for argument, value in (("n", n), ("epoch", epoch), ("seed", seed)):
        if value < 0:
            raise DataError(f"{argument} is {value}; expected 0 or more")
    generator = np.random.default_rng([seed, epoch])
    if groups is None:
        return generator.permutation(n).astype(np.int64)
    if groups.starts[0] != 0 or groups.starts[-1] != n:
        raise DataError(f"groups covers {groups.starts[0]} .. {groups.starts[-1]}; expected 0 .. n = {n}")
    return _shuffled_in_groups(groups, generator)


def train_order(n: int, images: int, seed: int, groups: ReadGroups | None = None) -> np.ndarray:
    """The positions of a whole training run, int64 [images]: `shuffled_order` of epoch 0, 1, ... one after another.

    Raises:
        DataError: an empty dataset cannot give images.
    """
    if n < 1 and images > 0:
        raise DataError(f"n is {n}; expected at least one image to draw {images} from")
    epochs = -(-images // n) if n else 0
    parts = [shuffled_order(n, epoch, seed, groups) for epoch in range(epochs)]
    return np.concatenate([np.empty(0, np.int64), *parts])[:images]


def limit(dataset: ImageDataset, n: int, seed: int) -> ImageDataset:
    """A random subset of at most `n` images, as even over the classes as their sizes allow, in dataset order.

    A larger `n` with the same seed contains the smaller one. Images without label count as one class.

    Raises:
        DataError: n below 1.
    """
    if n < 1:
        raise DataError(f"n is {n}; expected at least 1 image")
    if n >= len(dataset):
        return dataset
    turns, ties = _turns(dataset.labels, seed)
    return dataset.subset(np.sort(np.lexsort((ties, turns))[:n]))


def holdout(dataset: ImageDataset, share: float, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """(rest, held out): a class-balanced cut of a dataset that comes without splits.

    `share` of each class, rounded to the nearest image, is held out. Together the two hold every image once.

    Raises:
        DataError: share outside 0 < share < 1.
    """
    if not 0 < share < 1:
        raise DataError(f"share is {share}; expected a fraction between 0 and 1")
    turns, _ = _turns(dataset.labels, seed)
    classes, class_of = np.unique(dataset.labels, return_inverse=True)
    quota = np.rint(np.bincount(class_of, minlength=len(classes)) * share)
    held = turns < quota[class_of]
    return dataset.subset(np.flatnonzero(~held)), dataset.subset(np.flatnonzero(held))


def _shuffled_in_groups(groups: ReadGroups, generator: np.random.Generator) -> np.ndarray:
    visit = generator.permutation(len(groups.starts) - 1)
    parts = [np.empty(0, np.int64)]
    for first in range(0, len(visit), groups.together):
        window = visit[first : first + groups.together]
        rows = np.concatenate([np.arange(groups.starts[g], groups.starts[g + 1]) for g in window])
        parts.append(generator.permutation(rows))
    return np.concatenate(parts).astype(np.int64)


def _turns(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(turn [n], tie [n]): the place of each image in a random order of its class, and of the whole dataset."""
    ties = np.random.default_rng(seed).permutation(len(labels))
    by_class = np.lexsort((ties, labels))
    ordered = labels[by_class]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(labels) else np.empty(0, np.int64)
    counts = np.diff(np.r_[starts, len(labels)])
    turns = np.empty(len(labels), np.int64)
    turns[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return turns, ties

"""What a setting trains on and what it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchsae.adapt.options import AdaptOptions
from patchsae.data import ImageDataset, base_novel, few_shot
from patchsae.data.base import DataError


@dataclass(frozen=True, eq=False)
class Part:
    """Images that one accuracy is about."""

    name: str
    """all, base or novel; of another dataset, its name."""
    dataset: ImageDataset
    """Labels count from 0 within the part's own classes."""


@dataclass(frozen=True, eq=False)
class Task:
    """A training set with the parts to test on, in order."""

    training: ImageDataset
    parts: tuple[Part, ...]


def make_task(
    options: AdaptOptions, train: ImageDataset, test: ImageDataset, targets: Sequence[ImageDataset] = ()
) -> Task:
    """The task of a setting.

    The few images are drawn over all classes and the base classes taken from them afterwards, as CoOp does.

    Args:
        train, test: splits of one dataset with the same classes.
        targets: test splits of other datasets, for "cross-dataset".

    Raises:
        ValueError: the splits do not fit together, targets where they have no use or none where they have, a linear
            probe for classes that it does not learn, or an image without label.
    """
    _check(options, train, test, targets)
    drawn = few_shot(train, options.shots, options.seed)
    if options.setting == "base-to-novel":
        base, novel = base_novel(test)
        return Task(base_novel(drawn)[0], (Part("base", base), Part("novel", novel)))
    own = "all" if options.setting == "few-shot" else test.name
    names = _distinct([own, *(target.name for target in targets)])
    others = (Part(name, target) for name, target in zip(names[1:], targets, strict=True))
    return Task(drawn, (Part(names[0], test), *others))


def _check(options: AdaptOptions, train: ImageDataset, test: ImageDataset, targets: Sequence[ImageDataset]) -> None:
    options.require_targets([target.name for target in targets])
    for dataset in (train, test, *targets):
        _require_labels(dataset)
    if train.classnames != test.classnames:
        raise DataError(
            f"{test.name} has other classes than {train.name} ({_difference(train, test)}); "
            "expected two splits of one dataset"
        )


def _require_labels(dataset: ImageDataset) -> None:
    if not dataset.classnames:
        raise DataError(f"{dataset.name} has no labels; expected a dataset with classes")
    if len(dataset) == 0:
        raise DataError(f"{dataset.name} is empty; expected at least one image")
    unlabelled = int(np.count_nonzero(dataset.labels < 0))
    if unlabelled:
        raise DataError(f"{dataset.name} has {unlabelled} images without label; expected a class for every image")


def _difference(train: ImageDataset, test: ImageDataset) -> str:
    ours, theirs = train.classnames or [], test.classnames or []
    if len(ours) != len(theirs):
        return f"{len(theirs)} of them, not {len(ours)}"
    label = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return f"label {label} is {theirs[label]!r}, not {ours[label]!r}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that occur again get a number, so that rows can be told apart."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result

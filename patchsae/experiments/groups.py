"""Base and novel classes: which classes stand together in a report, and which compete for an image."""

from __future__ import annotations

import torch
from torch import Tensor

ALL, BASE, NOVEL = "all", "base", "novel"


def class_groups(kind: str, classes: int) -> dict[str, range]:
    """The groups that images are classified within, which partition the labels 0 .. C - 1.

    kind: "none" gives {"all": every label}; "base-novel" gives the first ceil(C / 2) labels as "base" and the rest as
    "novel", as published. Raises ValueError where there is no class left to be novel.
    """
    if kind == "none":
        return {ALL: range(classes)}
    if classes < 2:
        raise ValueError(f"groups is {kind!r} and there is {classes} class; expected at least 2 classes to tell apart")
    half = -(-classes // 2)
    return {BASE: range(half), NOVEL: range(half, classes)}


def reported_groups(kind: str, classes: int) -> dict[str, range]:
    """The groups that statistics are reported for: all classes, then those of :func:`class_groups`."""
    return {ALL: range(classes), **class_groups(kind, classes)}


def group_of(kind: str, classes: int) -> Tensor:
    """int64 [C]: the group of every label, counted from 0."""
    sizes = [len(labels) for labels in class_groups(kind, classes).values()]
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def harmonic_mean(first: float, second: float) -> float:
    """2 a b / (a + b) of two accuracies, and 0 where one of them is 0 (Xian et al. 2017)."""
    return 2 * first * second / (first + second) if first + second else 0.0

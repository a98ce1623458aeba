"""Accuracies of two sides in groups of classes, and how much of the errors went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchsae.experiments.groups import BASE, NOVEL, harmonic_mean
from patchsae.words import percent

HARMONIC_MEAN = "harmonic mean"


def improvement(first: float, second: float) -> float | None:
    """delta = (B - A) / (1 - A) of two accuracies in [0, 1]; None where A is 1."""
    return None if first == 1 else (second - first) / (1 - first)


def with_harmonic_mean(accuracies: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Group -> accuracies of both sides; where base and novel classes are told apart, their harmonic mean too."""
    if BASE not in accuracies or NOVEL not in accuracies:
        return dict(accuracies)
    (base_a, base_b), (novel_a, novel_b) = accuracies[BASE], accuracies[NOVEL]
    return {**accuracies, HARMONIC_MEAN: (harmonic_mean(base_a, novel_a), harmonic_mean(base_b, novel_b))}


def accuracy_columns(names: tuple[str, str], accuracies: Mapping[str, tuple[float, float]]) -> dict[str, list[Any]]:
    """A row per group and side: its name, the accuracy, and on side B the improvement over A."""
    columns: dict[str, list[Any]] = {name: [] for name in ("group", "side", "name", "accuracy", "delta")}
    for group, pair in with_harmonic_mean(accuracies).items():
        for letter, name, accuracy, delta in zip("ab", names, pair, (None, improvement(*pair)), strict=True):
            for column, value in zip(columns.values(), (group, letter, name, accuracy, delta), strict=True):
                column.append(value)
    return columns


def accuracy_facts(names: tuple[str, str], accuracies: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """The same for the head of a report's section."""
    facts: dict[str, str] = {}
    for group, (first, second) in with_harmonic_mean(accuracies).items():
        which = "" if len(accuracies) == 1 else f", {group}"
        delta = improvement(first, second)
        facts[f"accuracy{which}: {names[0]} → {names[1]}"] = f"{percent(first)} → {percent(second)}"
        facts[f"improvement (B - A) / (100 - A){which}"] = percent(delta)
    return facts

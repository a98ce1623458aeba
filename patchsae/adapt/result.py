"""What an adaptation leaves: accuracies by part and by class, their harmonic mean, and the summary over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from patchsae.adapt.evaluation import PartResult
from patchsae.adapt.options import MAY_DIFFER
from patchsae.disk.runs import Run, Stage
from patchsae.disk.settings import differences
from patchsae.experiments.accuracies import HARMONIC_MEAN
from patchsae.experiments.groups import harmonic_mean
from patchsae.words import percent

MEAN = "mean of targets"
_FILE = "accuracy"  # .json while running and after, beside the tables


@dataclass(frozen=True)
class Row:
    """A line of accuracy.csv; accuracies are shares."""

    part: str
    classes: int | None
    images: int | None
    accuracy: float
    clip: float
    """Of the CLIP without the adapter."""


def rows(parts: Sequence[PartResult], setting: str) -> list[Row]:
    """Every part, then the harmonic mean of base and novel, or the mean over the target datasets."""
    table = [
        Row(part.name, len(part.classnames), sum(part.images), part.accuracy, part.clip_accuracy) for part in parts
    ]
    if setting == "base-to-novel":
        base, novel = table
        accuracy = harmonic_mean(base.accuracy, novel.accuracy)
        table.append(Row(HARMONIC_MEAN, None, None, accuracy, harmonic_mean(base.clip, novel.clip)))
    if setting == "cross-dataset":
        targets = table[1:]
        accuracy = statistics.fmean(row.accuracy for row in targets)
        table.append(Row(MEAN, None, None, accuracy, statistics.fmean(row.clip for row in targets)))
    return table


def save_parts(stage: Stage, parts: Sequence[PartResult]) -> None:
    """Keep the parts that are tested, so that a stopped evaluation goes on with the next."""
    stage.save_json(_FILE, [asdict(part) for part in parts])


def load_parts(stage: Stage) -> list[PartResult]:
    """The parts of a stage that have been tested."""
    if not (stage.path / f"{_FILE}.json").exists():
        return []
    with stage.understanding():
        return [PartResult(**part) for part in stage.load_json(_FILE)]


def write_tables(stage: Stage, parts: Sequence[PartResult], setting: str) -> None:
    """accuracy.csv and classes.csv."""
    table = rows(parts, setting)
    fields = ("part", "classes", "images", "accuracy", "clip")
    stage.write_table(f"{_FILE}.csv", {name: [getattr(row, name) for row in table] for name in fields})
    stage.write_table("classes.csv", class_columns(parts))


def class_columns(parts: Sequence[PartResult]) -> dict[str, list[Any]]:
    """One line per class of every part; the accuracy of a class without images is missing."""
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("part", "label", "class", "images", "correct", "accuracy", "clip_correct", "clip_accuracy")
    }
    for part in parts:
        counts = zip(part.classnames, part.images, part.correct, part.clip_correct, strict=True)
        for label, (name, images, correct, clip_correct) in enumerate(counts):
            shares = (correct / images, clip_correct / images) if images else (None, None)
            line = (part.name, label, name, images, correct, shares[0], clip_correct, shares[1])
            for column, value in zip(columns.values(), line, strict=True):
                column.append(value)
    return columns


def over_seeds(stage: Stage, setting: str, parts: Sequence[PartResult]) -> dict[int, list[Row]]:
    """Rows by seed: this stage's, and those of the finished stages of the run that differ from it in the seed alone."""
    config = stage.config or {}
    found = {config["seed"]: rows(parts, setting)}
    for other in Run(stage.path.parent).stages():
        theirs = other.config or {}
        if other.name != stage.name and other.finished and _same_but_seed(config, theirs):
            found.setdefault(theirs["seed"], rows(load_parts(other), setting))
    return dict(sorted(found.items()))


def summary(by_seed: Mapping[int, Sequence[Row]]) -> dict[str, list[Any]]:
    """Mean and standard deviation (n - 1) of every row over the seeds, as columns of text."""
    columns: dict[str, list[Any]] = {"part": [], "mean": [], "standard deviation": [], "CLIP": []}
    for lines in zip(*by_seed.values(), strict=True):
        accuracies = [line.accuracy for line in lines]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        shown = (lines[0].part, percent(statistics.fmean(accuracies), 2), percent(spread, 2), percent(lines[0].clip, 2))
        for column, value in zip(columns.values(), shown, strict=True):
            column.append(value)
    return columns


def _same_but_seed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return set(differences(ours, theirs)) <= {"seed", "made_from.training", *MAY_DIFFER}

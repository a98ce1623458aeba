"""The report's section on the classes: the first latents of each, and how many every two of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from patchsae.experiments.classes.options import ClassesOptions
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.shown import SHOWN_CLASSES
from patchsae.report import Section, plots
from patchsae.words import counted, number


def section(extraction: Extraction, columns: Mapping[str, Sequence[Any]], options: ClassesOptions) -> Section:
    """The first latents of every class. columns: of :func:`patchsae.experiments.classes.experiment.top_latents`."""
    names = extraction.classnames or ()
    lead = (
        f"The first {counted(options.top, 'latent')} of each of {counted(len(names), 'class', 'classes')}, by the "
        f"number of tokens with an activation above {number(extraction.threshold)} in the images of the class."
    )
    part = Section("Classes", lead)
    if options.common_classes:
        part.text(
            f"Latents among the first {options.common_top} of more than {options.common_classes} classes rank last in "
            "every class."
        )
    latents = first_latents(columns, len(names))
    shown = min(len(names), SHOWN_CLASSES)
    rest = f" The first {shown} of {len(names):,} classes; all are in top_latents.csv." if shown < len(names) else ""
    part.figure(
        shared_latents(extraction, columns),
        f"How many of their first {options.top} latents every two classes share; on the diagonal, how many of them a "
        f"class has above the threshold at all.{rest}",
    )
    part.table(
        {
            "label": list(range(shown)),
            "class": list(names[:shown]),
            "first latents": [" ".join(map(str, row)) or "none above the threshold" for row in latents[:shown]],
        },
        f"Latents of every class, most frequent first.{rest}",
    )
    return part


def shared_latents(extraction: Extraction, columns: Mapping[str, Sequence[Any]]) -> Figure:
    """Heat map of :func:`shared_counts` for the first 40 classes."""
    names = (extraction.classnames or ())[:SHOWN_CLASSES]
    return plots.heat(shared_counts(first_latents(columns, len(names))), names, names, "shared latents")


def shared_counts(latents: Sequence[Sequence[int]]) -> np.ndarray:
    """How many latents every two classes have in common: int64 [C, C] from the distinct latents of C classes."""
    sets = [set(row) for row in latents]
    return np.array([[len(a & b) for b in sets] for a in sets], np.int64).reshape(len(sets), len(sets))


def first_latents(columns: Mapping[str, Sequence[Any]], classes: int) -> list[list[int]]:
    """The listed latents of each of the first ``classes`` classes, best first."""
    latents: list[list[int]] = [[] for _ in range(classes)]
    for label, latent in zip(columns["label"], columns["latent"], strict=True):
        if label < classes:
            latents[label].append(latent)
    return latents

"""The transitions of a comparison as a table: a row per kind for every group of classes and for every class."""

from __future__ import annotations

from typing import Any

from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.compare.transitions import NORMALISATIONS, TRANSITIONS, Transitions


def transition_columns(comparison: Comparison) -> dict[str, list[Any]]:
    """Means over the classes of every group (a row has no class then), then every class that has images.

    "latents" is how many latents there are of the kind; each "of ..." column divides that by what it names
    (``NORMALISATIONS``).
    """
    found, names = comparison.transitions, comparison.classnames
    assert found is not None
    assert names is not None
    columns: dict[str, list[Any]] = {name: [] for name in ("group", "label", "class", "classes", "kind", "latents")}
    columns |= {f"of {name}": [] for name in NORMALISATIONS}
    rows = [(group, None, None, labels.tolist()) for group, labels in comparison.seen_labels.items() if len(labels)]
    group_names = {label: group for group, labels in comparison.seen_labels.items() for label in labels.tolist()}
    rows += [(group_names[label], label, names[label], [label]) for label in sorted(group_names)]
    for group, label, name, labels in rows:
        for kind, latents, shares in _kinds(found, labels):
            row = (group, label, name, len(labels), kind, latents, *shares)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return columns


def _kinds(found: Transitions, labels: list[int]) -> list[tuple[str, float, tuple[float, ...]]]:
    """(kind, mean number of latents, mean share under every normalisation) over some classes."""
    shares = zip(*(found.mean_shares(of, labels) for of in NORMALISATIONS), strict=True)
    return list(zip(TRANSITIONS, found.mean_counts(labels), shares, strict=True))

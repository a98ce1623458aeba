"""The table over datasets and adapters: its rows, as columns and as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchsae.experiments.accuracies import improvement, with_harmonic_mean
from patchsae.experiments.compare.crossed_result import CrossedResult
from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.compare.transitions import NORMALISATIONS, TRANSITIONS
from patchsae.words import NOTHING, fixed


@dataclass(frozen=True)
class Means:
    """The latents of a group of classes, averaged over those with images; lists are in the order of ``TRANSITIONS``."""

    classes: int
    latents: list[float]
    shares: Mapping[str, list[float]]
    """One list for each of ``NORMALISATIONS``."""


@dataclass(frozen=True)
class TableRow:
    """What the table says of a cell: one dataset, the CLIP (A) and the adapted CLIP (B)."""

    cell: str
    dataset: str
    adapter: str
    means: Mapping[str, Means]
    """Group of classes -> its latents, in the images that were ranked."""
    accuracies: Mapping[str, tuple[float, float]]
    """Group of classes -> accuracies of A and B, on the images that were classified."""


def table_row(cell: str, dataset: str, comparison: Comparison, classified: CrossedResult) -> TableRow:
    """The row of a finished cell; the comparison must be of labelled images."""
    found = comparison.transitions
    assert found is not None
    means = {
        group: Means(
            len(labels), found.mean_counts(labels), {of: found.mean_shares(of, labels) for of in NORMALISATIONS}
        )
        for group, labels in comparison.seen_labels.items()
        if len(labels)
    }
    return TableRow(cell, dataset, comparison.names[1], means, classified.accuracies)


def table_columns(rows: Sequence[TableRow]) -> dict[str, list[Any]]:
    """A row per cell and group of classes: latents of every kind and their shares, accuracies, improvement.

    Base and novel images are classified among their own classes: then "all" has no accuracy, and the harmonic mean has
    no latents.
    """
    parts = [
        _group_columns(row, group)
        for row in rows
        for group in dict.fromkeys([*row.means, *with_harmonic_mean(row.accuracies)])
    ]
    return {name: [part[name] for part in parts] for name in parts[0]}


def markdown_columns(rows: Sequence[TableRow], of: str) -> dict[str, list[str]]:
    """The table as Lim et al. print it: a row per cell, shares and accuracies in per cent, base/novel in one field.

    of: the normalisation of the shares, one of ``NORMALISATIONS``.
    """
    columns: dict[str, list[str]] = {"dataset": [row.dataset for row in rows], "adapter": [row.adapter for row in rows]}
    for position, kind in enumerate(TRANSITIONS):
        columns[kind] = [
            _joined(row.means[group].shares[of][position] if group in row.means else None for group in row.accuracies)
            for row in rows
        ]
    for side, name in enumerate(("CLIP", "adapted")):
        columns[name] = [_joined(pair[side] for pair in row.accuracies.values()) for row in rows]
    columns["delta"] = [_joined(improvement(*pair) for pair in row.accuracies.values()) for row in rows]
    return columns


def caption(rows: Sequence[TableRow], of: str) -> str:
    """What the figures of :func:`markdown_columns` are."""
    groups = list(rows[0].accuracies)
    told_apart = "" if len(groups) == 1 else f" In every field: {'/'.join(groups)} classes."
    return (
        f"Shares are per cent of {NORMALISATIONS[of]} (A is CLIP, B is adapted), averaged over classes. Accuracies and "
        f"delta = (adapted - CLIP) / (100 - CLIP) are in per cent.{told_apart}"
    )


def markdown(columns: Mapping[str, Sequence[str]], below: str) -> str:
    """A markdown table with a caption below it; the first two columns are words."""
    rules = ["---" if position < 2 else "---:" for position in range(len(columns))]
    lines = [_line([*columns]), _line(rules), *(_line(row) for row in zip(*columns.values(), strict=True))]
    return "\n".join([*lines, "", below, ""])


def _group_columns(row: TableRow, group: str) -> dict[str, Any]:
    means, accuracies = row.means.get(group), with_harmonic_mean(row.accuracies).get(group)
    nothing = [None] * len(TRANSITIONS)
    columns: dict[str, Any] = {"cell": row.cell, "dataset": row.dataset, "adapter": row.adapter, "group": group}
    columns["classes"] = means.classes if means else None
    columns |= dict(zip(TRANSITIONS, means.latents if means else nothing, strict=True))
    for of in NORMALISATIONS:
        shares = means.shares[of] if means else nothing
        columns |= {f"{kind} of {of}": share for kind, share in zip(TRANSITIONS, shares, strict=True)}
    first, second = accuracies or (None, None)
    delta = improvement(*accuracies) if accuracies else None
    return columns | {"accuracy_a": first, "accuracy_b": second, "delta": delta}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _joined(shares: Any) -> str:
    return "/".join(NOTHING if share is None else fixed(100 * share, 2) for share in shares)

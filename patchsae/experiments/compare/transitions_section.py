"""The part of a comparison's section on latents that stay high in a class, turn low or turn high."""

from __future__ import annotations

from collections.abc import Sequence

from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.compare.transitions import KINDS, NORMALISATIONS
from patchsae.report import Section, plots
from patchsae.words import fixed


def class_transitions(part: Section, comparison: Comparison, shown: Sequence[int]) -> None:
    """Add the table of the groups and a plot of the classes ``shown`` (labels)."""
    found, names = comparison.transitions, comparison.classnames
    assert found is not None
    assert names is not None
    a, b = comparison.names
    part.heading("Latents that stay, go and come")
    part.text(
        f"A latent is high in a class when it is among the class's first {comparison.high:,} by tokens above the "
        f"threshold, and low when it is not among the first {comparison.low:,}. high->low is high in {a} (A) and low "
        f"in {b} (B)."
    )
    groups = {group: labels for group, labels in comparison.seen_labels.items() if len(labels)}
    means = {"latents": [found.mean_counts(labels) for labels in groups.values()]}
    for of, meaning in NORMALISATIONS.items():
        shares = [found.mean_shares(of, labels) for labels in groups.values()]
        means[f"% of {meaning}"] = [[100 * share for share in of_group] for of_group in shares]
    table = {"mean over classes": list(means)}
    for position, kind in enumerate(KINDS):
        table[kind] = [" / ".join(fixed(row[position], 2) for row in rows) for rows in means.values()]
    told_apart = "" if len(groups) == 1 else f" In every field: {' / '.join(groups)} classes."
    part.table(table, f"Latents of a class, and the same in per cent of several wholes.{told_apart}")
    rest = "" if len(shown) == len(names) else f" {len(shown)} of {len(names):,} classes are shown."
    series = {kind: [float(found.counts[label, column]) for label in shown] for column, kind in enumerate(KINDS)}
    figure = plots.class_dots([names[label] for label in shown], series, "latents", percent=False)
    part.figure(figure, f"Latents of every kind in every class.{rest} All: transitions.csv.")

"""The report's section on a comparison: overlap per class, shift per image, latents that gain and lose most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from patchsae.experiments.accuracies import accuracy_facts
from patchsae.experiments.compare.moved import hidden, moved, moved_in_class
from patchsae.experiments.compare.options import CompareOptions
from patchsae.experiments.compare.pair_table import overlap
from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.compare.side import Side
from patchsae.experiments.compare.transitions import NORMALISATIONS, TRANSITIONS
from patchsae.experiments.pictures import Seen, activations, name_of, tiles_of
from patchsae.experiments.shown import left_out, rest_of_classes, shown_labels
from patchsae.experiments.stream.fold import FoldResult
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Row, Section, Tile, plots
from patchsae.words import counted, fixed, percent


def section(
    comparison: Comparison,
    sides: tuple[Side, Side],
    sae: SparseAutoencoder,
    folded: FoldResult,
    options: CompareOptions,
) -> Section:
    """What changes from side A to side B."""
    a, b = comparison.names
    pairs = comparison.pairs
    first, second = (side.dataset.fingerprint for side in sides)
    what = "the same images" if first == second else "images of the same classes"
    lead = f"{a} against {b} on {counted(len(pairs.labels), 'pair')} of {what}, read through one autoencoder."
    part = Section(f"Comparison: {a} against {b}", lead)
    shared = overlap(pairs.top[:, 0], pairs.top[:, 1]).shared.sum(dim=1).double()
    facts: dict[str, float | str] = {
        f"of an image's top {comparison.top} shared": float(shared.mean()),
        "mean activation shift": percent(float(pairs.shift.mean())),
    }
    facts |= accuracy_facts(comparison.distinct_names, comparison.accuracies)
    part.facts(facts)
    if folded.bad:
        part.text("\n\n".join(folded.lines()))
    caption = (
        "Activation shift of the pairs: the sum of |b - a| over the sum of a + b, a and b being the mean activations "
        "of every latent in the image on either side. 0 is no change, 1 nothing in common."
    )
    part.figure(shift_histogram(comparison), caption)
    if comparison.accuracies:
        _classes(part, comparison)
    _moved(part, comparison, sides, sae, options)
    return part


def shift_histogram(comparison: Comparison) -> Figure:
    """How many pairs have which activation shift."""
    return plots.histogram(comparison.pairs.shift.numpy(), "activation shift")


def _classes(part: Section, comparison: Comparison) -> None:
    columns = comparison.class_columns()
    seen = shown_labels(columns["images"])
    names = [columns["class"][label] for label in seen]
    shared, only_a, only_b = ([columns[name][label] for label in seen] for name in ("shared", "only_a", "only_b"))
    rest = rest_of_classes(len(seen), len(columns["class"]))
    part.heading("By class")
    part.figure(
        plots.shared_exclusive_bars(names, shared, only_a, only_b, comparison.names),
        f"Shared and exclusive latents among the top {comparison.top} of every class on each side, by the number of "
        f"tokens above the threshold.{rest} All, with the latents: classes.csv.",
    )
    accuracies = {
        name: [columns[f"accuracy_{letter}"][label] for label in seen]
        for letter, name in zip("ab", comparison.distinct_names, strict=True)
    }
    among = "" if comparison.groups == "none" else " Base and novel images are classified among their own classes."
    part.figure(
        plots.class_dots(names, accuracies, "accuracy"), f"Share of every class classified correctly.{among}{rest}"
    )
    _transitions(part, comparison, seen)


def _transitions(part: Section, comparison: Comparison, shown: Sequence[int]) -> None:
    """Latents that stay high in a class, turn low or turn high: means of the groups, a plot of ``shown`` (labels)."""
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
    for position, kind in enumerate(TRANSITIONS):
        table[kind] = [" / ".join(fixed(row[position], 2) for row in rows) for rows in means.values()]
    told_apart = "" if len(groups) == 1 else f" In every field: {' / '.join(groups)} classes."
    part.table(table, f"Latents of a class, and the same in per cent of several wholes.{told_apart}")
    rest = rest_of_classes(len(shown), len(names))
    series = {kind: [float(found.counts[label, column]) for label in shown] for column, kind in enumerate(TRANSITIONS)}
    figure = plots.class_dots([names[label] for label in shown], series, "latents", percent=False)
    part.figure(figure, f"Latents of every kind in every class.{rest} All: transitions.csv.")


def _moved(
    part: Section,
    comparison: Comparison,
    sides: tuple[Side, Side],
    sae: SparseAutoencoder,
    options: CompareOptions,
) -> None:
    """Latents that gain and lose most: by mean activation over all tokens, and with labels by tokens in one class."""
    n = max(1, options.show_latents // 2) if options.show_latents else 0
    of_all = moved(comparison, options.noisy_above, n)
    in_class = moved_in_class(comparison, options.noisy_above, n)
    wanted = sorted({latent for lists in (of_all, in_class) for latents in lists for latent in latents})
    tiles = _tiles(comparison, sides, sae, wanted, -(-options.show_images // 2))
    a, b = comparison.names
    noisy = left_out(hidden(comparison, options.noisy_above), options.noisy_above)
    intro = f"The pictures are the reference images of {a}, then those of {b}, drawn on one scale. {noisy}"
    for latents, title in zip(of_all, ("gain", "lose"), strict=True):
        rows = _rows(latents, tiles, partial(_statistics, comparison))
        _gallery(part, f"Latents that {title} most", f"By mean activation over all image tokens. {intro}", rows, noisy)
    if comparison.class_counts is None:
        return
    for latents, title in zip(in_class, ("gain", "lose"), strict=True):
        rows = _rows(latents, tiles, partial(_in_class, comparison, title))
        text = f"By the change of a_c in one class: tokens above the threshold per image of the class. {intro}"
        _gallery(part, f"Latents that {title} most in a class", text, rows, noisy)


def _gallery(part: Section, title: str, text: str, rows: Sequence[Row], noisy: str) -> None:
    part.heading(title)
    part.text(text if rows else f"None. {noisy}")
    if rows:
        part.galleries(rows)


def _rows(
    latents: Sequence[int], tiles: dict[int, list[Tile]], statistics: Callable[[int], dict[str, float | str]]
) -> list[Row]:
    return [
        Row(f"Latent {latent}", statistics(latent), tiles[latent], "" if tiles[latent] else "No reference images.")
        for latent in latents
    ]


def _tiles(
    comparison: Comparison,
    sides: tuple[Side, Side],
    sae: SparseAutoencoder,
    latents: Sequence[int],
    n: int,
) -> dict[int, list[Tile]]:
    """Latent -> up to ``n`` reference images of side A, then of side B; one colour scale per latent."""
    places = {
        (side, latent): [i for i in comparison.top_images[side, latent, :n].tolist() if i >= 0]
        for side in (0, 1)
        for latent in latents
    }
    seen = [
        activations(side.clip, sae, side.dataset, ((latent, i) for latent in latents for i in places[number, latent]))
        for number, side in enumerate(sides)
    ]
    tiles = {}
    for latent in latents:
        tiles[latent] = tiles_of(
            [
                Seen(f"{comparison.names[side]}: {name_of(sides[side].dataset, image)}", seen[side][latent, image])
                for side in (0, 1)
                for image in places[side, latent]
            ]
        )
    return tiles


def _statistics(comparison: Comparison, latent: int) -> dict[str, float | str]:
    statistics: dict[str, float | str] = {"change of mean": float(comparison.shift[latent])}
    for side, name in enumerate(comparison.distinct_names):
        statistics[f"mean, {name}"] = float(comparison.mean_activation[side, latent])
        statistics[f"active in, {name}"] = f"{percent(float(comparison.frequency[side, latent]))} of images"
    return statistics


def _in_class(comparison: Comparison, title: str, latent: int) -> dict[str, float | str]:
    shifts = comparison.class_shift
    assert shifts is not None
    assert comparison.classnames is not None
    assert comparison.class_counts is not None
    label = int((shifts.gain_label if title == "gain" else shifts.loss_label)[latent])
    images = int(comparison.class_images[label])
    statistics: dict[str, float | str] = {"class": comparison.classnames[label]}
    for side, name in enumerate(comparison.distinct_names):
        statistics[f"tokens per image, {name}"] = int(comparison.class_counts[side, label, latent]) / images
    return statistics

"""The report's section on a comparison: overlap per class, shift per image, latents that gain and lose most."""

from __future__ import annotations

from matplotlib.figure import Figure

from patchsae.data import ImageDataset
from patchsae.experiments.accuracies import accuracy_facts
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.compare.moved_section import latents_that_moved
from patchsae.experiments.compare.pair_table import overlap
from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.compare.transitions_section import class_transitions
from patchsae.experiments.options import CompareOptions
from patchsae.experiments.stream.fold import FoldResult
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, plots
from patchsae.words import counted, percent

_SHOWN_CLASSES = 40


def section(
    comparison: Comparison,
    clips: tuple[AnyCLIP, AnyCLIP],
    datasets: tuple[ImageDataset, ImageDataset],
    sae: SparseAutoencoder,
    folded: FoldResult,
    options: CompareOptions,
) -> Section:
    """What changes from side A to side B."""
    a, b = comparison.names
    pairs = comparison.pairs
    what = "the same images" if datasets[0].fingerprint == datasets[1].fingerprint else "images of the same classes"
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
    latents_that_moved(part, comparison, clips, datasets, sae, options)
    return part


def shift_histogram(comparison: Comparison) -> Figure:
    """How many pairs have which activation shift."""
    return plots.histogram(comparison.pairs.shift.numpy(), "activation shift")


def _classes(part: Section, comparison: Comparison) -> None:
    columns = comparison.class_columns()
    seen = [label for label, images in enumerate(columns["images"]) if images][:_SHOWN_CLASSES]
    names = [columns["class"][label] for label in seen]
    shared, only_a, only_b = ([columns[name][label] for label in seen] for name in ("shared", "only_a", "only_b"))
    rest = "" if len(seen) == len(columns["class"]) else f" {len(seen)} of {len(columns['class'])} classes are shown."
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
    class_transitions(part, comparison, seen)

"""The report's section on a comparison: overlap per class, shift per image, latents that gain and lose most."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from patchsae.clip import SplitCLIP
from patchsae.data import ImageDataset
from patchsae.experiments.comparison import Comparison
from patchsae.experiments.config import CompareOptions
from patchsae.experiments.fold import FoldResult
from patchsae.experiments.pair_table import overlap
from patchsae.experiments.pictures import reference_tiles
from patchsae.report import Row, Section, plots
from patchsae.sae import SparseAutoencoder

_SHOWN_CLASSES = 40


def section(
    comparison: Comparison,
    clips: tuple[SplitCLIP, SplitCLIP],
    datasets: tuple[ImageDataset, ImageDataset],
    sae: SparseAutoencoder,
    folded: FoldResult,
    options: CompareOptions,
) -> Section:
    """What changes from side A to side B."""
    a, b = comparison.names
    pairs = comparison.pairs
    what = "the same images" if datasets[0].fingerprint == datasets[1].fingerprint else "images of the same classes"
    lead = f"{a} against {b} on {len(pairs.labels):,} pairs of {what}, read through one autoencoder."
    part = Section("compare", "Comparison", lead)
    shared = overlap(pairs.top[:, 0], pairs.top[:, 1]).shared.sum(dim=1).double()
    facts = {
        f"of an image's top {comparison.top} shared": f"{float(shared.mean()):.2f}",
        "mean activation shift": f"{float(pairs.shift.mean()):.1%}",
    }
    if comparison.accuracies is not None:
        accuracy_a, accuracy_b = comparison.accuracies
        facts |= {f"accuracy, {a}": f"{accuracy_a:.1%}", f"accuracy, {b}": f"{accuracy_b:.1%}"}
        delta = comparison.delta
        facts["improvement (B - A) / (100 - A)"] = "–" if delta is None else f"{delta:.1%}"
    part.facts(facts)
    if folded.bad:
        part.text("\n\n".join(folded.lines()))
    caption = (
        "Activation shift of the pairs: the sum of |b - a| over the sum of a + b, a and b being the mean activations "
        "of every latent in the image on either side. 0 is no change, 1 nothing in common."
    )
    part.figure(shift_histogram(comparison), caption)
    if comparison.classnames is not None:
        _classes(part, comparison)
    _latents(part, comparison, clips, datasets, sae, options)
    return part


def shift_histogram(comparison: Comparison) -> Figure:
    """How many pairs have which activation shift."""
    return plots.histogram(comparison.pairs.shift.numpy(), "activation shift")


def moved(comparison: Comparison, noisy_above: float, n: int) -> tuple[list[int], list[int]]:
    """Up to ``n`` latents that gain most mean activation and up to ``n`` that lose most; noisy ones left out."""
    shown = ~(comparison.noise > noisy_above).any(dim=0)
    shift = torch.where(shown, comparison.shift, 0)
    order = shift.argsort(descending=True, stable=True)
    gain = [latent for latent in order[:n].tolist() if shift[latent] > 0]
    lose = [latent for latent in order.flip(0)[:n].tolist() if shift[latent] < 0]
    return gain, lose


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
        for letter, name in zip(("a", "b"), _distinct(comparison.names), strict=True)
    }
    part.figure(plots.class_dots(names, accuracies, "zero-shot accuracy"), f"Zero-shot accuracy of every class.{rest}")


def _distinct(names: tuple[str, str]) -> tuple[str, str]:
    return names if names[0] != names[1] else (f"{names[0]} (A)", f"{names[1]} (B)")


def _latents(
    part: Section,
    comparison: Comparison,
    clips: tuple[SplitCLIP, SplitCLIP],
    datasets: tuple[ImageDataset, ImageDataset],
    sae: SparseAutoencoder,
    options: CompareOptions,
) -> None:
    gain, lose = moved(
        comparison, options.noisy_above, max(1, options.show_latents // 2) if options.show_latents else 0
    )
    for side, latents, title in ((1, gain, "gain"), (0, lose, "lose")):
        part.heading(f"Latents that {title} most")
        if not latents:
            part.text("None, once noisy latents are left out.")
            continue
        part.text(
            f"By mean activation over all tokens; the pictures are the reference images of {comparison.names[side]}."
        )
        references = comparison.top_images[side, latents, : options.show_images]
        tiles = reference_tiles(clips[side], sae, datasets[side], latents, references)
        part.galleries([Row(f"Latent {latent}", _statistics(comparison, latent), tiles[latent]) for latent in latents])


def _statistics(comparison: Comparison, latent: int) -> dict[str, float | str]:
    statistics: dict[str, float | str] = {"change of mean": float(comparison.shift[latent])}
    for side, name in enumerate(_distinct(comparison.names)):
        statistics[f"mean, {name}"] = float(comparison.mean_activation[side, latent])
        statistics[f"active in, {name}"] = f"{float(comparison.frequency[side, latent]):.2%} of images"
    return statistics

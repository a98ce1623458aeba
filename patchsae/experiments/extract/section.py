"""The report's section on the latents: the scatter, and a gallery of latents worth looking at."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.extract.label_spread import MINIMUM_ENTRIES
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.pictures import reference_images, tiles_of
from patchsae.experiments.shown import left_out
from patchsae.experiments.stream.fold import FoldResult
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Row, Section, plots
from patchsae.words import counted, number, percent


def section(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    extraction: Extraction,
    folded: FoldResult,
    options: ExtractOptions,
) -> Section:
    """What the latents of an extraction are like, in figures and pictures."""
    lead = (
        f"{counted(extraction.latents, 'latent')} read on {counted(extraction.images, 'image')} of {dataset.name}, "
        f"{counted(extraction.tokens_per_image, 'token')} each."
    )
    part = Section("Latents", lead)
    part.facts(counts(extraction, options))
    if folded.bad:
        part.text("\n\n".join(folded.lines()))
    caption = (
        "Every latent by the share of images in which it is active and its mean activation in those"
        + (
            ""
            if extraction.classnames is None
            else ", coloured by the entropy of its reference images' labels (grey: undefined)"
        )
        + f". {plots.never_fired(extraction.frequency.numpy())}"
    )
    part.figure(scatter(extraction), caption)
    _gallery(part, clip, sae, dataset, extraction, options)
    return part


def scatter(extraction: Extraction) -> Figure:
    """Frequency against mean activation of every latent that fired, coloured by label entropy if there are labels."""
    entropy, defined = extraction.entropy
    coloured = None if extraction.classnames is None else np.where(defined.numpy(), entropy.numpy(), np.nan)
    return plots.frequency_scatter(extraction.frequency.numpy(), extraction.mean_activation.numpy(), coloured)


def counts(extraction: Extraction, options: ExtractOptions) -> dict[str, int]:
    """How many latents are of which kind."""
    weak = (extraction.counts == 0) & ~extraction.never_fired
    kinds = {
        "latents": extraction.latents,
        "never fired": int(extraction.never_fired.sum()),
        f"fired, never above {number(options.threshold)}": int(weak.sum()),
    }
    if math.isfinite(options.noisy_above):
        noisy = int(extraction.noisy(options.noisy_above).sum())
        kinds[f"noisy (mean activation above {number(options.noisy_above)})"] = noisy
    return kinds


def interesting(extraction: Extraction, noisy_above: float, n: int) -> list[int]:
    """Up to ``n`` latents worth showing: not noisy, with a full set of reference images of few labels, strong.

    With labels they are ordered by label entropy, then by largest activation, and every label gives its best latent
    before any gives its second. Without labels the order is that of the largest activation.
    """
    entropy, defined = extraction.entropy
    shown = ~extraction.never_fired & ~extraction.noisy(noisy_above)
    labels = extraction.majority_label
    if extraction.classnames is not None:
        shown &= defined
    chosen = shown.nonzero().squeeze(1)
    strength = extraction.top_patches.values[chosen, 0].double()
    by = np.lexsort((chosen.numpy(), -strength.numpy(), entropy[chosen].numpy()))
    ordered = chosen[torch.from_numpy(by)].tolist()
    turn: dict[int, int] = {}
    turns = []
    for latent in ordered:
        label = int(labels[latent])
        turns.append(turn.get(label, 0) if label >= 0 else 0)
        turn[label] = turn.get(label, 0) + 1
    return [ordered[i] for i in np.argsort(turns, kind="stable")[:n]]


def latent_row(extraction: Extraction, latent: int) -> dict[str, float | int | str | None]:
    """The statistics of a latent for a display."""
    entropy, defined = extraction.entropy
    label = int(extraction.majority_label[latent])
    names = extraction.classnames
    row: dict[str, float | int | str | None] = {
        "active in": f"{percent(float(extraction.frequency[latent]))} of images",
        "mean activation": float(extraction.mean_activation[latent]),
        "largest": float(extraction.top_patches.values[latent, 0]),
    }
    if names is not None:
        row["label entropy"] = float(entropy[latent]) if defined[latent] else None
        row["mostly"] = names[label] if label >= 0 else None
    return row


def _gallery(
    part: Section,
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    extraction: Extraction,
    options: ExtractOptions,
) -> None:
    part.heading("Reference images")
    latents = interesting(extraction, options.noisy_above, options.show_latents)
    noisy, few = _left_out(extraction, options.noisy_above)
    if not latents:
        part.text(f"No latent is left to show. {noisy} {few}")
        return
    part.text(f"{_order(extraction)} {noisy} {few} Below every image: where the latent is active in it.")
    references = extraction.top_images.images[latents, : options.show_images]
    seen = reference_images(clip, sae, dataset, latents, references)
    rows = [Row(f"Latent {latent}", latent_row(extraction, latent), tiles_of(seen[latent])) for latent in latents]
    part.galleries(rows)


def _order(extraction: Extraction) -> str:
    """The order of `interesting` in words."""
    if extraction.classnames is None:
        return "The latents with the largest activations, the largest first."
    return (
        "For every label that a latent is mostly active on, the latent whose reference images agree most on it (the "
        "lowest label entropy, then the largest activation); these in the order of their label entropy. Then every "
        "label's second latent likewise, and so on."
    )


def _left_out(extraction: Extraction, noisy_above: float) -> tuple[str, str]:
    """What is said of the noisy latents that `interesting` leaves out, and of those with too few reference images."""
    noisy = extraction.noisy(noisy_above)
    few = ~extraction.entropy[1] & ~extraction.never_fired & ~noisy
    count = 0 if extraction.classnames is None else int(few.sum())
    fewer = f"{counted(count, 'latent')} with fewer than {MINIMUM_ENTRIES} labelled reference images"
    said = f"{fewer} {'is' if count == 1 else 'are'} left out: without them there is no label entropy."
    return left_out(int(noisy.sum()), noisy_above), said if count else ""

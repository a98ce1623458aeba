"""The report's section on how good an autoencoder is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import prompts_in_words
from patchsae.experiments.evaluate.concepts import ConceptScores
from patchsae.experiments.evaluate.options import EvaluateOptions
from patchsae.experiments.evaluate.quality import Quality
from patchsae.experiments.evaluate.result import CLS_ONLY, MASKINGS, EvaluateResult
from patchsae.experiments.mask.embeddings import RECONSTRUCTION, UNMODIFIED
from patchsae.experiments.stream.fold import FoldResult
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, figures, plots, ticks
from patchsae.report.figures import MUTED, SERIES
from patchsae.words import counted, number, percent

_BINS = 60
_SHOWN_CONCEPTS = 40
_IN_WORDS = {UNMODIFIED: "unmodified", RECONSTRUCTION: "all tokens reconstructed", CLS_ONLY: "CLS alone reconstructed"}


def section(
    result: EvaluateResult,
    clip: SplitCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    folded: FoldResult,
    options: EvaluateOptions,
) -> Section:
    """Reconstruction, sparsity, classification through the autoencoder, concepts."""
    part = Section(
        "Quality of the autoencoder",
        f"{counted(sae.config.d_sae, 'latent')} on {counted(folded.used, 'image')} of {dataset.name}, "
        f"{counted(clip.image_tokens, 'token')} each.",
    )
    part.facts(_facts(result))
    if folded.bad:
        part.text("\n\n".join(folded.lines()))
    _reconstruction(part, result)
    if result.correct is not None:
        _classification(part, result, clip, options)
    if result.concepts is not None:
        _concepts(part, result, result.concepts)
    return part


def distributions(quality: Quality, dense_above: float) -> Figure:
    """Active latents per token of CLS and patches, and how often every latent that fired is active."""
    with figures.style():
        figure = figures.new(7.2, 3.0)
        left, right = figure.subplots(1, 2)
        _l0_steps(left, quality)
        fired = quality.frequency.numpy()
        right.hist(np.log10(fired[fired > 0]), bins=_BINS, color=SERIES[0])
        if dense_above > 0:
            right.axvline(math.log10(dense_above), color=MUTED, linewidth=1, linestyle="--", label="dense")
            right.legend(loc="best")
        right.set_xlabel("log₁₀ share of tokens")
        right.set_ylabel("latents")
        ticks.whole(right.yaxis)
    return figure


def _facts(result: EvaluateResult) -> dict[str, Any]:
    quality = result.quality
    facts: dict[str, Any] = {
        "explained variance": quality.all.explained_variance,
        "normalised MSE": quality.all.nmse,
        "L0": quality.all.l0,
        "dead latents": quality.dead,
        "dense latents": quality.dense(result.dense_above),
    }
    unmodified, kept = result.accuracy(UNMODIFIED), result.accuracy(RECONSTRUCTION)
    if unmodified is not None and kept is not None:
        facts |= {"accuracy, unmodified": percent(unmodified), "accuracy, reconstructed": percent(kept)}
    if result.concepts is not None:
        facts["concept precision"] = result.concepts.mean_precision
        if not math.isnan(result.concepts.mean_iou):
            facts["concept IoU"] = result.concepts.mean_iou
    return facts


def _reconstruction(part: Section, result: EvaluateResult) -> None:
    quality = result.quality
    part.heading("Reconstruction and sparsity")
    columns = {**result.token_columns(), "group": ["all", "CLS", "patches"]}
    errors = {
        "group": "tokens",
        "explained_variance": "explained variance",
        "nmse": "NMSE",
        "nmse_centred": "centred NMSE",
        "cosine": "cosine",
    }
    part.table(
        {title: columns[name] for name, title in errors.items()},
        "CLS tokens and patches, together and apart. NMSE: squared error over squared norm. Explained variance and "
        "centred NMSE are about the mean token of these images (of its kind, where they are apart).",
    )
    terms = {"group": "tokens", "mse": "released MSE", "squared_error": "squared error", "l1": "L1", "l0": "L0"}
    part.table(
        {title: columns[name] for name, title in terms.items()},
        "What training weighs against each other. Released MSE: mean of the squared error over the token's norm. "
        "Squared error: of a token, the published term. L1 is without a coefficient.",
    )
    dead, size = quality.dead, len(quality.fired)
    quantiles = {f"{share:.0%}": quality.l0_quantile(share) for share in (0.05, 0.25, 0.5, 0.75, 0.95)}
    part.figure(
        distributions(quality, result.dense_above),
        "Left: how many latents are active on a token. Right: on which share of the tokens each latent is active; "
        f"{dead:,} of {size:,} ({percent(dead / size)}) never were and are not drawn, "
        f"{quality.dense(result.dense_above):,} are dense (on more than {percent(result.dense_above, 0)} of the "
        "tokens). L0 at " + ", ".join(f"{share}: {value:,}" for share, value in quantiles.items()) + " of the tokens.",
    )


def _classification(part: Section, result: EvaluateResult, clip: SplitCLIP, options: EvaluateOptions) -> None:
    part.heading("What CLIP still sees")
    columns = result.classification_columns()
    loss = result.contrastive
    note = "No batch was whole, so there is no contrastive loss."
    if loss is not None:
        note = (
            f"The contrastive loss is the mean over {counted(loss.batches, 'batch', 'batches')} of "
            f"{counted(result.batch_size, 'image')} with the captions of their class names, of which equal ones count "
            "as different, as in the released code: nothing "
            f"gets below {number(loss.lowest)} here, and chance is {number(math.log(result.batch_size))}."
        )
    part.table(
        {
            "residual stream": [_IN_WORDS[masking] for masking in MASKINGS],
            "contrastive loss": columns["contrastive_loss"],
            "zero-shot accuracy, %": [100 * accuracy for accuracy in columns["zero_shot_accuracy"]],
        },
        f"Classification with {prompts_in_words(clip, options)}. {note}",
    )


def _concepts(part: Section, result: EvaluateResult, scores: ConceptScores) -> None:
    part.heading("Concepts")
    part.text(
        f"The best single latent for each concept, chosen on {counted(scores.images[0], 'image')} and judged on the "
        f"other {scores.images[1]:,}. Precision: average precision of the images ranked by the latent's largest "
        "activation on a patch. IoU: patches where the latent is above a threshold, chosen likewise, against those "
        "that the concept covers by half or more. A random latent is the mean over all that fired; the best dimension "
        "is that of the residual stream, of either sign, chosen and judged in the same way."
    )
    groups = list(dict.fromkeys(group for group, _ in scores.names))
    raw = result.raw_concepts
    part.table(
        _group_means(groups, scores, {"latent": scores, "dimension": raw}, "precision")
        | {"base rate": _means(groups, scores, scores.base_rate)},
        "Average precision, means over the concepts of each group. Base rate: share of the images that show the "
        "concept, the precision of a coin.",
    )
    if not bool(scores.iou.isnan().all()):
        part.table(
            _group_means(groups, scores, {"latent": scores, "dimension": raw}, "iou"),
            "Intersection over union, means over the concepts of each group.",
        )
    columns = result.concept_columns()
    shown = [v for v in range(len(scores.names)) if columns["latent"][v] is not None][:_SHOWN_CONCEPTS]
    if shown:
        series = {
            "best latent": columns["precision"],
            "best dimension": columns.get("raw_precision", columns["precision"]),
            "random latent": columns["random_precision"],
        }
        figure = plots.class_dots(
            [scores.names[v][1] for v in shown],
            {name: [column[v] for v in shown] for name, column in series.items()},
            "average precision",
        )
        part.figure(figure, f"Average precision of {len(shown)} of {len(scores.names)} concepts. All: concepts.csv.")
    inner = Section("")
    inner.table(
        {name: columns[name] for name in ("concept", "latent", "precision", "base_rate", "iou", "threshold")},
        "The best latent of every concept. Base rate: share of the images that show it, the precision of a coin.",
    )
    part.details("Every concept", inner)


def _group_means(
    groups: list[str], scores: ConceptScores, compared: dict[str, ConceptScores | None], figure: str
) -> dict[str, list[Any]]:
    """Rows: the groups and, where there are several, all. Columns: the best latent and dimension, a random latent."""
    columns: dict[str, list[Any]] = {"concepts": [*groups, "all"] if len(groups) > 1 else groups}
    for name, found in compared.items():
        if found is not None:
            columns[f"best {name}"] = _means(groups, scores, getattr(found, figure))
    return columns | {"random latent": _means(groups, scores, getattr(scores, f"random_{figure}"))}


def _means(groups: list[str], scores: ConceptScores, values: Tensor) -> list[float]:
    """The mean over each group's concepts, then over all of several groups; those without a figure are left out."""
    means = [float(values[[g == group for g, _ in scores.names]].nanmean()) for group in groups]
    return [*means, float(values.nanmean())] if len(groups) > 1 else means


def _l0_steps(axes: Axes, quality: Quality) -> None:
    """The distribution of L0 as two outlines, in shares of the tokens of each kind."""
    most = int(quality.l0.sum(0).nonzero().max()) + 1
    edges = np.unique(np.linspace(0, most, min(most, _BINS) + 1).astype(int))
    for row, (name, counts) in enumerate(zip(("CLS", "patches"), quality.l0.numpy(), strict=True)):
        shares = np.add.reduceat(counts[:most], edges[:-1]) / max(1, counts.sum()) / np.diff(edges)
        axes.stairs(shares, edges, color=SERIES[1 - row], label=name, linewidth=1.4)
    axes.set_xlabel("active latents (L0)")
    ticks.whole(axes.xaxis)
    axes.set_ylabel("share of tokens")
    axes.legend(loc="best")

"""The report's section on masking with both rankings in both models."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from patchsae.data import ImageDataset
from patchsae.experiments.accuracies import accuracy_facts
from patchsae.experiments.any_clip import AnyCLIP, prompts_in_words
from patchsae.experiments.compare.crossed_result import SIDES, CrossedResult
from patchsae.experiments.compare.options import CrossOptions
from patchsae.experiments.mask.embeddings import ABLATE, KEEP, RECONSTRUCTION, UNMODIFIED, Masking
from patchsae.experiments.mask.section import ON_RANKED_IMAGES, replaced_tokens
from patchsae.experiments.shown import rest_of_classes, shown_labels
from patchsae.experiments.stream.fold import FoldResult
from patchsae.report import Section, plots
from patchsae.report.panels import recall_panels
from patchsae.words import counted

_MODES = {KEEP: "kept", ABLATE: "ablated"}


def section(
    result: CrossedResult,
    clips: tuple[AnyCLIP, AnyCLIP],
    test: ImageDataset,
    folded: FoldResult,
    options: CrossOptions,
    *,
    on_ranked_images: bool,
) -> Section:
    """Accuracies of both models as they are, and what keeping and ablating latents does to them."""
    a, b = result.names
    classifiers = "; ".join(
        f"{name}: {prompts_in_words(clip, options)}" for name, clip in zip(result.distinct_names, clips, strict=True)
    )
    lead = (
        f"{a} and {b} on {counted(int(result.models[0].images.sum()), 'image')} of {test.name} "
        f"({counted(len(result.classnames), 'class', 'classes')}; {classifiers})."
    )
    part = Section(f"Classification: {a} against {b}", lead)
    part.facts(accuracy_facts(result.distinct_names, result.accuracies))
    if result.groups != "none":
        part.text("Images of base classes are classified among the base classes, the others among the novel ones.")
    if folded.bad:
        part.text("\n\n".join(folded.lines()))
    part.table(_overview(result), "Accuracy as it is, and with tokens replaced by their reconstruction, in per cent.")
    if not result.models[0].rankings:
        return part
    part.heading("Rankings across models")
    part.text(
        f"Each image is masked by the ranking of its own class, taken from {a} or from {b}; {replaced_tokens(options)} "
        "are replaced by what the first k latents decode to (keep), or all the others (ablate)."
    )
    if on_ranked_images:
        part.text(f"{ON_RANKED_IMAGES}: how well a ranking transfers to images it has not seen is not shown.")
    if options.bias_offset:
        part.text(f"{options.bias_offset} was added to every element of every reconstruction.")
    for side, name in enumerate(result.distinct_names):
        part.figure(crossed_curves(result, side), f"Accuracy of {name} with the class rankings of either side.")
    for mode, word in _MODES.items():
        part.table(_accuracies(result, mode), f"Accuracy in per cent with the first k latents {word}.")
    rest = rest_of_classes(len(_seen(result)), len(result.classnames))
    for mode, word in _MODES.items():
        caption = f"Share of every class classified correctly with the first k latents {word}.{rest} All: recall.csv."
        part.figure(recall_maps(result, mode), caption)
    return part


def crossed_curves(result: CrossedResult, side: int) -> Figure:
    """Accuracy of one model against the number of latents kept and ablated, a line per source of the ranking."""
    model, names = result.models[side], result.distinct_names
    keep, ablate = (
        {
            f"ranked by {name}": [model.accuracy(Masking(letter, mode, k)) for k in model.ks]
            for letter, name in zip(SIDES, names, strict=True)
        }
        for mode in (KEEP, ABLATE)
    )
    chance = 1 / len(result.classnames) if result.groups == "none" else None
    as_it_is, full = model.accuracy(UNMODIFIED), model.accuracy(RECONSTRUCTION)
    return plots.sweep_curves(model.ks, keep, ablate, as_it_is, chance, full)


def recall_maps(result: CrossedResult, mode: str) -> Figure:
    """Recall of every class (the first 40 with images) over k, a panel for each ranking in each model."""
    seen, ks, names = _seen(result), result.models[0].ks, result.distinct_names
    panels = {}
    for ranking, source in zip(SIDES, names, strict=True):
        for model, where in zip(result.models, names, strict=True):
            recalls = [model.recall(Masking(ranking, mode, k)) for k in ks]
            rows = [[recall[label] for recall in recalls] for label in seen]
            panels[f"ranked by {source}\nin {where}"] = np.asarray(rows, np.float64)
    return recall_panels(panels, [result.classnames[label] for label in seen], [f"{k:,}" for k in ks], "k (latents)")


def _seen(result: CrossedResult) -> list[int]:
    return shown_labels(result.models[0].images.tolist())


def _overview(result: CrossedResult) -> dict[str, list[Any]]:
    rows = [(group, what) for what in ("as it is", "reconstructed") for group in result.class_groups]
    sources = {"as it is": result.accuracies, "reconstructed": result.reconstructed}
    columns: dict[str, list[Any]] = {"classes": [group for group, _ in rows], "tokens": [what for _, what in rows]}
    for side, name in enumerate(result.distinct_names):
        columns[f"{name}, %"] = [100 * sources[what][group][side] for group, what in rows]
    return columns


def _accuracies(result: CrossedResult, mode: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"k": result.models[0].ks}
    for ranking, source in zip(SIDES, result.distinct_names, strict=True):
        for model, where in zip(result.models, result.distinct_names, strict=True):
            accuracies = [100 * model.accuracy(Masking(ranking, mode, k)) for k in model.ks]
            columns[f"ranked by {source}, in {where}"] = accuracies
    return columns

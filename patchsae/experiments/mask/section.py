"""The report's section on the masking sweep: accuracy curves, the same numbers as a table, recall per class."""

from __future__ import annotations

from matplotlib.figure import Figure

from patchsae.data import ImageDataset
from patchsae.experiments.any_clip import AnyCLIP, prompts_in_words
from patchsae.experiments.mask.embeddings import ABLATE, KEEP, RECONSTRUCTION, UNMODIFIED, Masking
from patchsae.experiments.mask.options import MaskOptions, TopKOptions
from patchsae.experiments.mask.result import MaskResult
from patchsae.experiments.shown import rest_of_classes, shown_labels
from patchsae.experiments.stream.fold import FoldResult
from patchsae.report import Section, plots
from patchsae.words import counted, percent

ON_RANKED_IMAGES = "Evaluated on the images that were ranked"
_SHOWN_K = 10


def section(
    result: MaskResult,
    clip: AnyCLIP,
    dataset: ImageDataset,
    folded: FoldResult,
    options: MaskOptions,
    *,
    on_ranked_images: bool,
) -> Section:
    """What keeping and ablating latents does to zero-shot classification."""
    lead = (
        f"Zero-shot accuracy on {counted(int(result.images.sum()), 'image')} of {dataset.name} "
        f"({counted(len(result.classnames), 'class', 'classes')}, {prompts_in_words(clip, options)}) when "
        f"{replaced_tokens(options)} are replaced by what the first k latents of a ranking decode to (keep), or all "
        "the others (ablate). The class ranking is that of each image's own class."
    )
    part = Section("Top-k latent masking", lead)
    unmodified, full = result.accuracy(UNMODIFIED), result.accuracy(RECONSTRUCTION)
    chance = 1 / len(result.classnames)
    part.facts({"unmodified": percent(unmodified), "all latents kept": percent(full), "chance": percent(chance)})
    if on_ranked_images:
        part.text(f"{ON_RANKED_IMAGES}: how well the class ranking transfers to images it has not seen is not shown.")
    if folded.bad:
        part.text("\n\n".join(folded.lines()))
    if options.bias_offset:
        part.text(f"{options.bias_offset} was added to every element of every reconstruction.")
    part.figure(
        accuracy_curves(result), "Accuracy against the number of latents kept (left) or ablated (right), by ranking."
    )
    keep, ablate = _accuracies(result, KEEP), _accuracies(result, ABLATE)
    columns: dict[str, list[int] | list[float]] = {"k": result.ks}
    for name in result.rankings:
        columns |= {
            f"keep {name}, %": [100 * a for a in keep[name]],
            f"ablate {name}, %": [100 * a for a in ablate[name]],
        }
    part.table(columns, "The same accuracies in per cent.")
    _per_class(part, result)
    return part


def replaced_tokens(options: TopKOptions) -> str:
    """Which tokens a sweep replaces, in words."""
    return "all image tokens" if options.keep_prompt_tokens else "all tokens"


def accuracy_curves(result: MaskResult) -> Figure:
    """Accuracy against the number of latents kept and ablated, a line per ranking."""
    return plots.sweep_curves(
        result.ks,
        _accuracies(result, KEEP),
        _accuracies(result, ABLATE),
        result.accuracy(UNMODIFIED),
        1 / len(result.classnames),
        result.accuracy(RECONSTRUCTION),
    )


def _accuracies(result: MaskResult, mode: str) -> dict[str, list[float]]:
    return {name: [result.accuracy(Masking(name, mode, k)) for k in result.ks] for name in result.rankings}


def _per_class(part: Section, result: MaskResult) -> None:
    """Recall of every class at one k, for the ranking that is about classes."""
    ks = [k for k in result.ks if k <= _SHOWN_K]
    name = result.rankings[0]
    seen = shown_labels(result.images.tolist())
    if not ks or not seen:
        return
    chosen = {
        "unmodified": UNMODIFIED,
        f"only top {ks[-1]} kept": Masking(name, KEEP, ks[-1]),
        f"top {ks[-1]} ablated": Masking(name, ABLATE, ks[-1]),
    }
    series = {title: [result.recall(masking)[label] or 0.0 for label in seen] for title, masking in chosen.items()}
    part.heading("Recall per class")
    rest = rest_of_classes(len(seen), len(result.classnames))
    figure = plots.class_dots([result.classnames[label] for label in seen], series, "recall")
    part.figure(figure, f"Share of every class's images classified correctly ({name} ranking).{rest} All: recall.csv.")

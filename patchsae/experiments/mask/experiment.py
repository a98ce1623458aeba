"""Top-k latent masking: zero-shot accuracy with only the first k latents of a ranking kept, or with those ablated.

Lim et al., arXiv 2412.05276. Every image is masked by the ranking of its ground-truth class. One tower pass
and one encode serve all masks of a batch (:mod:`patchsae.experiments.mask.embeddings`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from patchsae.data import Batch, ImageDataset
from patchsae.disk.hashing import fingerprint
from patchsae.disk.runs import Stage
from patchsae.experiments.any_clip import AnyCLIP, require_fit
from patchsae.experiments.classes.result import Rankings
from patchsae.experiments.mask.embeddings import maskings, sweep_embeddings, sweep_ks
from patchsae.experiments.mask.options import MaskOptions
from patchsae.experiments.mask.recall import RecallCounts
from patchsae.experiments.mask.result import MaskResult
from patchsae.experiments.mask.section import ON_RANKED_IMAGES, accuracy_curves, section
from patchsae.experiments.provenance import describe_sources, require_same_models
from patchsae.experiments.stream.fold import FoldResult
from patchsae.experiments.stream.job import Job
from patchsae.experiments.zero_shot import zero_shot
from patchsae.models import prompts
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, figures

AGAIN = "`patchsae extract --overwrite`, then `patchsae classes --overwrite`"


def run(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    rankings: Rankings,
    job: Job | Stage,
    options: MaskOptions | None = None,
) -> MaskResult:
    """Sweep the masks over a labelled dataset and leave tables, a plot and a report section; a stopped run goes on.

    Args:
        clip: split model, also the source of the zero-shot classifier [C, E].
        sae: autoencoder of its residual stream, S latents.
        dataset: images to classify, with the classes of the rankings. Use another split than the one that was
            ranked; where they are the same images, stderr and the report say so.
        rankings: from :func:`patchsae.experiments.classes.experiment.run`.
        job: its stage receives ``accuracy.csv`` (a row per variant), ``recall.csv`` (a row per variant and
            class), ``correct.safetensors``, ``variants.json``, ``sweep.png`` and the report's section.
        options: see :class:`MaskOptions`.

    Raises:
        ValueError: an image has no label, the classes are not those of the rankings, a ranking does not exist or was
            made with another autoencoder or CLIP, or a template is neither a prompt nor a name.
    """
    job, options = Job.of(job), options or MaskOptions()
    require_fit(clip, sae, dataset)
    sources = describe_sources(clip, sae, dataset)
    ranks = checked_ranks(dataset, rankings, options.rankings)
    require_same_models("rankings is", rankings.made_from, sources, AGAIN)
    templates = prompts.resolve(options.templates)
    ranked = {"fingerprint": fingerprint(ranks), "dataset": rankings.made_from["dataset"]}
    same_images = ranked["dataset"]["fingerprint"] == dataset.fingerprint
    if same_images and job.parallel.is_first:
        print(f"mask: {ON_RANKED_IMAGES}; another split tells whether the ranking generalises", file=sys.stderr)

    def write(stage: Stage, found: tuple[MaskResult, FoldResult]) -> Section:
        result, folded = found
        result.save(stage)
        stage.write_bytes("sweep.png", figures.png(accuracy_curves(result)))
        return section(result, clip, dataset, folded, options, on_ranked_images=same_images)

    compute = partial(_sweep, clip, sae, dataset, ranks, templates, job, options)
    job.make(job.config(options, **sources, ranked=ranked), compute, write, device=clip.device)
    return MaskResult.load(job.stage)


def checked_ranks(dataset: ImageDataset, rankings: Rankings, names: Sequence[str]) -> dict[str, Tensor]:
    """The named rankings; ValueError unless every image of the dataset has a label of the classes that were ranked."""
    unlabelled = np.flatnonzero(dataset.labels < 0)
    if dataset.classnames is None or len(unlabelled):
        came = f"image {dataset.ids(int(unlabelled[0]))!r} has none" if len(unlabelled) else "there are none"
        raise ValueError(f"masking needs the label of every image of {dataset.name!r}; {came}")
    if tuple(dataset.classnames) != rankings.classnames:
        raise ValueError(
            f"dataset {dataset.name!r} has the classes {_few(dataset.classnames)}; the rankings are of "
            f"{_few(rankings.classnames)}: expected the same classes in the same order"
        )
    missing = [name for name in names if name not in rankings.ranks]
    if missing:
        raise ValueError(f"rankings has {missing[0]!r}; expected names out of {', '.join(rankings.ranks)}")
    return {name: rankings.ranks[name] for name in names}


def _few(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _sweep(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    ranks: Mapping[str, Tensor],
    templates: Sequence[str],
    job: Job,
    options: MaskOptions,
) -> tuple[MaskResult, FoldResult]:
    """The result of all images, where this is the first process."""
    assert dataset.classnames is not None
    options = replace(options, ks=sweep_ks(options.ks, sae.config.d_sae))
    classifier = zero_shot(clip, dataset.classnames, templates, options)
    counts = RecallCounts(maskings(list(ranks), options.ks), classifier)
    ranks = {name: rank.to(clip.device) for name, rank in ranks.items()}

    def update(batch: Batch) -> None:
        counts.update(sweep_embeddings(clip, sae, batch.pixels, batch.labels, ranks, options), batch.labels)

    parts = {"recall": counts}
    folded = job.fold(dataset, clip.preprocess, update, parts, options, label="mask")
    folded.require_images(dataset)
    correct, images = counts.finalize()
    return MaskResult(counts.maskings, tuple(dataset.classnames), correct, images), folded

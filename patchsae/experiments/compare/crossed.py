"""Masking across models: the class rankings of side A and of side B, each applied in both models.

Lim et al., arXiv 2412.05276. Both rankings share one tower pass and one encode per image and model, so together with
the comparison that ranked, two models cost two extractions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from patchsae.data import Batch, ImageDataset
from patchsae.disk.hashing import fingerprint
from patchsae.disk.runs import Stage
from patchsae.experiments.any_clip import AnyCLIP, require_fit
from patchsae.experiments.classes.rankings import rank_by
from patchsae.experiments.classes.result import Rankings
from patchsae.experiments.compare.crossed_result import SIDES, CrossedResult
from patchsae.experiments.compare.crossed_section import crossed_curves, recall_maps, section
from patchsae.experiments.compare.options import CrossOptions
from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.compare.side import Side, require_same_tokens
from patchsae.experiments.groups import class_groups
from patchsae.experiments.mask.embeddings import ABLATE, KEEP, maskings, sweep_embeddings, sweep_ks
from patchsae.experiments.mask.experiment import checked_ranks
from patchsae.experiments.mask.recall import RecallCounts
from patchsae.experiments.mask.result import MaskResult
from patchsae.experiments.mask.section import ON_RANKED_IMAGES
from patchsae.experiments.provenance import describe_images, describe_model, describe_sae, require_same_models
from patchsae.experiments.stream.fold import FoldResult
from patchsae.experiments.stream.job import Job
from patchsae.experiments.zero_shot import zero_shot
from patchsae.models import prompts
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, figures

AGAIN = "`patchsae compare --overwrite`"


def run(
    first: Side,
    second: Side,
    sae: SparseAutoencoder,
    comparison: Comparison,
    test: ImageDataset,
    job: Job | Stage,
    options: CrossOptions | None = None,
) -> CrossedResult:
    """Classify images with both models under the masks of both rankings; a stopped run goes on.

    Args:
        first, second: sides A and B; their datasets are those that were compared.
        sae: the autoencoder that reads both, S latents.
        comparison: of these sides, from :func:`patchsae.experiments.compare.run`; its class counts are the rankings.
        test: images to classify, with the classes that were compared. Use another split than the one that was ranked;
            where they are the same images, stderr and the report say so.
        job: its stage receives ``accuracy.csv`` (the models as they are), ``masks.csv`` (a row per model, group
            of classes and variant), ``recall.csv`` (a row per model, variant and class), ``masks_a.png`` and
            ``masks_b.png`` (accuracy over k in either model), ``recall_keep.png`` and ``recall_ablate.png`` (class by
            k), ``correct.safetensors``, ``variants.json`` and the report's section.
        options: see :class:`CrossOptions`; without ``sweep`` there are no masks and no pictures, only the accuracies.

    Raises:
        ValueError: the comparison has no labels, or was made with another autoencoder or other models; the classes of
            ``test`` are others, an image of it has no label; the models preprocess images differently.
    """
    job, options = Job.of(job), options or CrossOptions()
    require_same_tokens(first, second)
    ranks, ranked = _ranks(first, second, sae, comparison, test, options)
    templates = prompts.resolve(options.templates)
    class_groups(options.groups, len(comparison.classnames or ()))
    named = {
        f"side_{letter}": {"name": side.name, "clip": describe_model(side.clip)}
        for letter, side in zip(SIDES, (first, second), strict=True)
    }
    made_from = {"sae": describe_sae(sae), **named, "dataset": describe_images(test), "ranked": ranked}
    same_images = test.fingerprint in {first.dataset.fingerprint, second.dataset.fingerprint}
    if same_images and ranks and job.parallel.is_first:
        name = job.stage.name
        print(f"{name}: {ON_RANKED_IMAGES}; another split tells whether the ranking generalises", file=sys.stderr)

    def write(stage: Stage, found: tuple[CrossedResult, FoldResult]) -> Section:
        result, folded = found
        result.save(stage)
        if ranks:
            _write_figures(result, stage)
        clips = (first.clip, second.clip)
        return section(result, clips, test, folded, options, on_ranked_images=same_images)

    compute = partial(_sweep, (first, second), sae, test, ranks, templates, job, options)
    job.make(job.config(options, **made_from), compute, write, device=first.clip.device)
    return CrossedResult.load(job.stage)


def _ranks(
    first: Side, second: Side, sae: SparseAutoencoder, comparison: Comparison, test: ImageDataset, options: CrossOptions
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The rankings of both sides, once everything is known to belong together, and what to record of them."""
    if comparison.class_counts is None or comparison.classnames is None:
        raise ValueError("the comparison was made on images without labels; expected labelled images to rank by class")
    sae_now, before = describe_sae(sae), comparison.made_from
    for letter, side in zip(SIDES, (first, second), strict=True):
        require_fit(side.clip, sae, test)
        then = {"sae": before.get("sae", {}), "clip": before.get(f"side_{letter}", {}).get("clip", {})}
        now = {"sae": sae_now, "clip": describe_model(side.clip)}
        require_same_models(f"comparison's side {letter.upper()} is", then, now, AGAIN)
    names = SIDES if options.sweep else ()
    found = {name: rank_by(counts) for name, counts in zip(names, comparison.class_counts, strict=False)}
    rankings = Rankings(comparison.classnames, found, before)
    datasets = {letter: before[f"side_{letter}"]["dataset"] for letter in SIDES}
    return checked_ranks(test, rankings, names), {"fingerprint": fingerprint(found), **datasets}


def _sweep(
    sides: tuple[Side, Side],
    sae: SparseAutoencoder,
    test: ImageDataset,
    ranks: Mapping[str, Tensor],
    templates: Sequence[str],
    job: Job,
    options: CrossOptions,
) -> tuple[CrossedResult, FoldResult]:
    """The result of all images, where this is the first process."""
    assert test.classnames is not None
    classnames, options = tuple(test.classnames), replace(options, ks=sweep_ks(options.ks, sae.config.d_sae))
    found = maskings(list(ranks), options.ks)
    clips: list[AnyCLIP] = [side.clip for side in sides]
    counts = [RecallCounts(found, zero_shot(clip, classnames, templates, options, options.groups)) for clip in clips]
    on_device = [{name: rank.to(clip.device) for name, rank in ranks.items()} for clip in clips]

    def update(batch: Batch) -> None:
        for clip, count, rankings in zip(clips, counts, on_device, strict=True):
            embeddings = sweep_embeddings(clip, sae, batch.pixels, batch.labels, rankings, options)
            count.update(embeddings, batch.labels)

    parts = {f"recall_{letter}": count for letter, count in zip(SIDES, counts, strict=True)}
    folded = job.fold(test, clips[0].preprocess, update, parts, options, label="masks")
    folded.require_images(test)
    first, second = (MaskResult(count.maskings, classnames, *count.finalize()) for count in counts)
    return CrossedResult((sides[0].name, sides[1].name), options.groups, (first, second)), folded


def _write_figures(result: CrossedResult, stage: Stage) -> None:
    for side, letter in enumerate(SIDES):
        stage.write_bytes(f"masks_{letter}.png", figures.png(crossed_curves(result, side)))
    for mode in (KEEP, ABLATE):
        stage.write_bytes(f"recall_{mode}.png", figures.png(recall_maps(result, mode)))

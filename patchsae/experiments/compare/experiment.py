"""Two models on the same images, or one model on two datasets, read through one autoencoder: what changes.

A model is a CLIP or an adapted one. Statistics see image tokens only, never the prompt tokens that follow them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.data import Batch, ImageDataset
from patchsae.disk.runs import Stage
from patchsae.experiments.accuracies import accuracy_columns
from patchsae.experiments.any_clip import require_fit
from patchsae.experiments.compare.options import CompareOptions
from patchsae.experiments.compare.pair_table import PairTable
from patchsae.experiments.compare.pairing import ByClass, Pairing, SameImages
from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.compare.section import section, shift_histogram
from patchsae.experiments.compare.side import Side, describe_side, require_same_tokens
from patchsae.experiments.compare.transition_table import transition_columns
from patchsae.experiments.groups import class_groups
from patchsae.experiments.provenance import describe_sae
from patchsae.experiments.stream.accumulators import LatentStatistics, TopImages, image_means
from patchsae.experiments.stream.fold import FoldResult
from patchsae.experiments.stream.job import Job
from patchsae.experiments.zero_shot import zero_shot
from patchsae.models import prompts
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, figures


def run(
    first: Side,
    second: Side,
    sae: SparseAutoencoder,
    job: Job | Stage,
    options: CompareOptions | None = None,
) -> Comparison:
    """Compare side A with side B and leave tables, figures and a report section in the stage; a stopped run goes on.

    Where both sides hold the same dataset, every image is compared with itself (two models): decoded once, one tower
    pass per model. Otherwise the j-th image of a class is compared with the j-th of that class on the other side.

    Args:
        first, second: sides A and B. Their models must preprocess images alike and have tokens of the autoencoder's
            width.
        sae: the autoencoder that reads both, S latents.
        job: its stage receives ``images.parquet``, ``latents.parquet``, ``pairs`` and ``sides`` (safetensors),
            ``names.json``, ``shift.png`` and the report's section; with labels also ``accuracy.csv``, ``classes.csv``,
            ``transitions.csv`` and ``class_counts.safetensors``.
        options: see :class:`CompareOptions`.

    Raises:
        ValueError: the sides cannot be compared: other preprocessing, another grid, or two datasets without common
            classes; or a template is neither a prompt nor a name.
    """
    job, options = Job.of(job), options or CompareOptions()
    pairing = _pairing(first, second)
    templates = prompts.resolve(options.templates)
    for side in (first, second):
        require_fit(side.clip, sae, side.dataset)
    if first.dataset.classnames:
        class_groups(options.groups, len(first.dataset.classnames))  # too few of them are refused before the work
    made_from = {"sae": describe_sae(sae), "side_a": describe_side(first), "side_b": describe_side(second)}
    sides = (first, second)

    def write(stage: Stage, found: tuple[list[_SideCollector], PairTable, FoldResult]) -> Section:
        collectors, table, folded = found
        comparison = _comparison(sides, collectors, table, made_from, options)
        comparison.save(stage)
        _write_tables(comparison, (first.dataset, second.dataset), stage)
        stage.write_bytes("shift.png", figures.png(shift_histogram(comparison)))
        return section(comparison, sides, sae, folded, options)

    compute = partial(_compare, sides, sae, pairing, templates, job, options)
    job.make(job.config(options, **made_from), compute, write, device=first.clip.device)
    return Comparison.load(job.stage)


def _pairing(first: Side, second: Side) -> Pairing:
    require_same_tokens(first, second)
    if first.dataset.fingerprint == second.dataset.fingerprint:
        return SameImages(first.dataset)
    return ByClass(first.dataset, second.dataset)


class _SideCollector:
    """The accumulators of one side."""

    def __init__(self, side: Side, sae: SparseAutoencoder, templates: Sequence[str], options: CompareOptions) -> None:
        self.clip, self.sae, self.tokens = side.clip, sae, side.clip.image_tokens
        names = side.dataset.classnames
        size, device = sae.config.d_sae, side.clip.device
        self.statistics = LatentStatistics(size, self.tokens, options.threshold, len(names) if names else None, device)
        self.top_images = TopImages(size, options.top, device)
        self.classifier = zero_shot(side.clip, names, templates, options, options.groups) if names else None

    def update(self, pixels: Tensor, index: Tensor, labels: Tensor) -> tuple[pk.SparseLatents, Tensor]:
        """Mean activations [B, S] of a batch, and which of its images are classified correctly, bool [B]."""
        residual = self.clip.residual(pixels)
        latents = self.sae.encode(residual[:, : self.tokens])
        means = image_means(latents, self.tokens)
        self.statistics.update(latents, labels)
        self.top_images.update(means, index)
        if self.classifier is None:
            return means, torch.zeros(len(labels), dtype=torch.bool)
        return means, self.classifier.correct(self.clip.embed(residual), labels)


def _compare(
    sides: tuple[Side, Side],
    sae: SparseAutoencoder,
    pairing: Pairing,
    templates: Sequence[str],
    job: Job,
    options: CompareOptions,
) -> tuple[list[_SideCollector], PairTable, FoldResult]:
    """What was collected of all pairs, where this is the first process."""
    collectors = [_SideCollector(side, sae, templates, options) for side in sides]
    table = PairTable(options.top)

    @torch.no_grad()
    def update(batch: Batch) -> None:
        pairs = pairing.pairs(batch)
        if len(pairs.labels) == 0:
            return
        (means_a, correct_a), (means_b, correct_b) = (
            collector.update(pixels, index, pairs.labels)
            for collector, pixels, index in zip(collectors, pairs.pixels, pairs.index, strict=True)
        )
        table.update((means_a, means_b), pairs.index, pairs.labels, (correct_a, correct_b))

    parts: dict[str, Any] = {"pairs": table}
    for letter, collector in zip("ab", collectors, strict=True):
        parts |= {f"statistics_{letter}": collector.statistics, f"top_images_{letter}": collector.top_images}
    streaming = replace(options, batch_size=options.batch_size * pairing.images_per_pair)
    folded = job.fold(pairing.stream, sides[0].clip.preprocess, update, parts, streaming, label="compare")
    return collectors, table, folded


def _comparison(
    sides: tuple[Side, Side],
    collectors: list[_SideCollector],
    table: PairTable,
    made_from: dict[str, Any],
    options: CompareOptions,
) -> Comparison:
    stats = [collector.statistics.finalize() for collector in collectors]
    if stats[0].images == 0:
        raise ValueError("no pair of images could be read; expected at least one")
    classes = [s.class_counts for s in stats if s.class_counts is not None]
    names = sides[0].dataset.classnames
    return Comparison(
        names=(sides[0].name, sides[1].name),
        top=options.top,
        high=options.high,
        low=options.low,
        groups=options.groups,
        made_from=made_from,
        classnames=None if names is None else tuple(names),
        pairs=table.finalize(),
        mean_activation=torch.stack([s.sums / s.tokens for s in stats]).cpu(),
        noise=torch.stack([s.sums / s.tokens_per_image / s.image_counts.clamp_min(1) for s in stats]).cpu(),
        frequency=torch.stack([s.image_counts.double() / s.images for s in stats]).cpu(),
        counts=torch.stack([s.counts for s in stats]).cpu(),
        class_counts=torch.stack(classes).cpu() if classes else None,
        top_images=torch.stack([collector.top_images.finalize().images for collector in collectors]).cpu(),
    )


def _write_tables(comparison: Comparison, datasets: tuple[ImageDataset, ImageDataset], stage: Stage) -> None:
    stage.write_table("images.parquet", comparison.image_columns(datasets))
    stage.write_table("latents.parquet", comparison.latent_columns())
    if comparison.accuracies:
        stage.write_table("accuracy.csv", accuracy_columns(comparison.names, comparison.accuracies))
    if comparison.transitions is not None:
        stage.write_table("classes.csv", comparison.class_columns())
        stage.write_table("transitions.csv", transition_columns(comparison))

"""Read the latents in one streaming pass over a dataset: frequencies, activations, reference images, labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from patchsae.data import Batch, ImageDataset
from patchsae.disk.runs import Stage
from patchsae.experiments.any_clip import AnyCLIP, require_fit
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.extract.section import scatter, section
from patchsae.experiments.provenance import describe_sources
from patchsae.experiments.stream.accumulators import (
    LatentStatistics,
    TopImages,
    TopImagesResult,
    TopPatches,
    TopPatchesResult,
    image_means,
)
from patchsae.experiments.stream.fold import FoldResult
from patchsae.experiments.stream.fold_state import Accumulator
from patchsae.experiments.stream.job import Job
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section, figures


def run(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    job: Job | Stage,
    options: ExtractOptions | None = None,
) -> Extraction:
    """Extract the statistics of every latent and leave them in the stage; a stopped run goes on.

    Args:
        clip: split model whose residual stream [B, T, D] the autoencoder reads.
        sae: autoencoder with d_in = D and S latents.
        dataset: images, with or without labels.
        job: its stage receives ``latents``, ``top`` and (with labels) ``class_counts`` as safetensors,
            ``latents.parquet`` (a row per latent), ``summary.json``, ``scatter.png`` and the report's section.
        options: see :class:`ExtractOptions`.

    Returns:
        The extraction, on the CPU, as read back from the stage.

    Raises:
        ValueError: the dataset is empty, or the autoencoder is of another width.
    """
    job, options = Job.of(job), options or ExtractOptions()
    require_fit(clip, sae, dataset)
    made_from = describe_sources(clip, sae, dataset)

    def write(stage: Stage, found: tuple[Extraction, FoldResult]) -> Section:
        extraction, folded = found
        extraction.save(stage)
        stage.write_table("latents.parquet", latent_columns(extraction, dataset))
        stage.write_bytes("scatter.png", figures.png(scatter(extraction)))
        return section(clip, sae, dataset, extraction, folded, options)

    compute = partial(_extract, clip, sae, dataset, made_from, job, options)
    job.make(job.config(options, **made_from), compute, write, device=clip.device)
    return Extraction.load(job.stage)


def latent_columns(extraction: Extraction, dataset: ImageDataset) -> dict[str, Any]:
    """The latents table, a row per latent. A figure that does not exist (never fired, no labels) is None."""
    fired = (~extraction.never_fired).tolist()
    entropy, defined = extraction.entropy
    labelled = (extraction.majority_label >= 0).tolist()
    image = extraction.top_images.images[:, 0].tolist()
    patch_image = extraction.top_patches.images[:, 0].tolist()
    majority = _where(extraction.majority_label.tolist(), labelled)
    names = extraction.classnames or ()
    return {
        "latent": np.arange(extraction.latents),
        "never_fired": extraction.never_fired.numpy(),
        "frequency": extraction.frequency.numpy(),
        "mean_activation": _where(extraction.mean_activation.tolist(), fired),
        "max_activation": _where(extraction.top_patches.values[:, 0].tolist(), fired),
        "images": extraction.image_counts.numpy(),
        "tokens_above_threshold": extraction.counts.numpy(),
        "label_entropy": _where(entropy.tolist(), defined.tolist()),
        "label_std": _where(extraction.label_std.tolist(), labelled),
        "majority_label": majority,
        "majority_class": [None if label is None else names[label] for label in majority],
        "top_image": _where(image, fired),
        "top_image_id": [dataset.ids(i) if i >= 0 else None for i in image],
        "top_patch_image": _where(patch_image, fired),
        "top_patch_image_id": [dataset.ids(i) if i >= 0 else None for i in patch_image],
        "top_patch_token": _where(extraction.top_patches.tokens[:, 0].tolist(), fired),
    }


def _where(values: list[Any], known: list[bool]) -> list[Any]:
    return [value if there else None for value, there in zip(values, known, strict=True)]


def _extract(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    made_from: dict[str, Any],
    job: Job,
    options: ExtractOptions,
) -> tuple[Extraction, FoldResult]:
    """The extraction of all images, where this is the first process."""
    size, tokens = sae.config.d_sae, clip.image_tokens
    classes = None if dataset.classnames is None else len(dataset.classnames)
    statistics = LatentStatistics(size, tokens, options.threshold, classes, clip.device)
    top_images = TopImages(size, options.top, clip.device)
    top_patches = TopPatches(size, options.top, tokens, clip.device)

    @torch.no_grad()
    def update(batch: Batch) -> None:
        latents = sae.encode(clip.residual(batch.pixels)[:, :tokens])
        statistics.update(latents, batch.labels)
        top_images.update(image_means(latents, tokens), batch.index)
        top_patches.update(latents, batch.index)

    parts: dict[str, Accumulator] = {"statistics": statistics, "top_images": top_images, "top_patches": top_patches}
    folded = job.fold(dataset, clip.preprocess, update, parts, options, label="extract")
    folded.require_images(dataset)
    return _extraction(statistics, top_images, top_patches, dataset, made_from, folded, options.threshold), folded


def _extraction(
    statistics: LatentStatistics,
    top_images: TopImages,
    top_patches: TopPatches,
    dataset: ImageDataset,
    made_from: dict[str, Any],
    folded: FoldResult,
    threshold: float,
) -> Extraction:
    stats = statistics.finalize()
    images = TopImagesResult(*(tensor.cpu() for tensor in top_images.finalize()))
    patches = TopPatchesResult(*(tensor.cpu() for tensor in top_patches.finalize()))
    labels = torch.from_numpy(dataset.labels)
    class_images = None
    if dataset.classnames is not None:
        seen = np.delete(dataset.labels, [record.index for record in folded.bad])
        class_images = torch.from_numpy(np.bincount(seen[seen >= 0], minlength=len(dataset.classnames)))
    return Extraction(
        images=stats.images,
        tokens_per_image=stats.tokens_per_image,
        threshold=threshold,
        classnames=None if dataset.classnames is None else tuple(dataset.classnames),
        sums=stats.sums.cpu(),
        counts=stats.counts.cpu(),
        image_counts=stats.image_counts.cpu(),
        class_counts=None if stats.class_counts is None else stats.class_counts.cpu(),
        class_images=class_images,
        top_images=images,
        top_patches=patches,
        top_labels=torch.where(images.images >= 0, labels[images.images], -1),
        made_from=made_from,
    )

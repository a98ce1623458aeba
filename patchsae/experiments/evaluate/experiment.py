"""How good an autoencoder is on images: reconstruction, sparsity, what CLIP still sees through it, concepts.

One pass over the images. :class:`ImageReader` does what does not depend on the autoencoder, :class:`Evaluation` what
does, so that many autoencoders can share a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.data import Batch, ImageDataset, shuffled_order
from patchsae.disk.runs import Stage
from patchsae.experiments.any_clip import require_fit
from patchsae.experiments.evaluate.concept_truth import Truth, concepts_of, truth_of
from patchsae.experiments.evaluate.concepts import ConceptCounts
from patchsae.experiments.evaluate.contrastive import ContrastiveSums
from patchsae.experiments.evaluate.options import EvaluateOptions
from patchsae.experiments.evaluate.quality import QualityCounts
from patchsae.experiments.evaluate.result import CLS_ONLY, MASKINGS, EvaluateResult
from patchsae.experiments.evaluate.section import section
from patchsae.experiments.mask.embeddings import RECONSTRUCTION, UNMODIFIED
from patchsae.experiments.mask.recall import RecallCounts
from patchsae.experiments.provenance import describe_sources
from patchsae.experiments.stream.fold import FoldResult
from patchsae.experiments.stream.fold_state import Accumulator
from patchsae.experiments.stream.job import Job
from patchsae.experiments.zero_shot import zero_shot
from patchsae.models import prompts
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.report import Section


def run(
    clip: SplitCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    job: Job | Stage,
    options: EvaluateOptions | None = None,
) -> EvaluateResult:
    """Evaluate an autoencoder and leave the figures in the stage; a stopped run goes on.

    Use images that it was not trained on. Classification and the contrastive loss need labels for all of them; concept
    scores need the shapes world (with masks) or up to 100 classes (without).

    Args:
        clip: split model whose residual stream [B, T, D] the autoencoder reads.
        sae: autoencoder with d_in = D.
        dataset: images; they are visited in an order shuffled by `options.seed`, so that a batch mixes classes.
        job: its stage receives ``evaluation.json`` (all single figures), ``tokens.csv`` (all, CLS, patches),
            ``latents.parquet`` (how often each fires), ``counts.safetensors`` and ``result.json`` (what
            :meth:`EvaluateResult.load` reads) and the report's section; ``classification.csv`` and ``concepts.csv``
            where there is something to classify and to score.
        options: see :class:`EvaluateOptions`.

    Raises:
        ValueError: the dataset is empty, the autoencoder is of another width, or a template is neither a prompt nor a
            name.
    """
    job, options = Job.of(job), options or EvaluateOptions()
    require_fit(clip, sae, dataset)

    def write(stage: Stage, found: tuple[Evaluation, ConceptCounts | None, FoldResult]) -> Section:
        evaluation, baseline, folded = found
        result = evaluation.finalize(baseline)
        result.save(stage)
        return section(result, clip, sae, dataset, folded, options)

    config = job.config(options, **describe_sources(clip, sae, dataset))
    job.make(config, partial(_evaluate, clip, sae, dataset, job, options), write, device=clip.device)
    return EvaluateResult.load(job.stage)


def _evaluate(
    clip: SplitCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    job: Job,
    options: EvaluateOptions,
) -> tuple[Evaluation, ConceptCounts | None, FoldResult]:
    """What was counted of all images, where this is the first process; the same without an autoencoder."""
    reader = ImageReader(clip, dataset, options)
    evaluation, baseline = Evaluation(reader, sae), raw_dimensions(reader)

    @torch.no_grad()
    def update(batch: Batch) -> None:
        images = reader.read(batch)
        evaluation.update(images)
        if baseline is not None and images.truth is not None:
            baseline.update(raw_latents(sae.normalised(images.residual).tokens, sae.b_dec), *images.truth)

    parts = evaluation.accumulators | ({} if baseline is None else {"raw": baseline})
    folded = job.fold(reader.shuffled, clip.preprocess, update, parts, options, label="evaluate")
    folded.require_images(dataset)
    return evaluation, baseline, folded


@dataclass(frozen=True, eq=False)
class ImagesRead:
    """What all autoencoders need of a batch of B images."""

    residual: Tensor
    """float32 [B, T, D]."""
    embedding: Tensor | None
    """Unit-norm [B, E] of the unmodified model; None for a dataset without labels."""
    labels: Tensor
    """int64 [B]."""
    truth: Truth | None
    """None for a dataset without concepts."""


class ImageReader:
    """The half of an evaluation that does not depend on the autoencoder.

    Attributes:
        shuffled: the dataset in the order in which it is read.
        classifier: zero-shot weights of the classes; None unless every image has a label.
        captions: unit-norm [C, E], the caption of every class for the contrastive loss; None likewise.
        concepts: ground truth for concept scores; None where there is none.
    """

    def __init__(self, clip: SplitCLIP, dataset: ImageDataset, options: EvaluateOptions) -> None:
        self.clip, self.options = clip, options
        self.order = torch.from_numpy(shuffled_order(len(dataset), 0, options.seed, dataset.read_groups))
        self.shuffled = dataset.subset(self.order.numpy())
        self.batch_size = min(options.batch_size, len(dataset))
        self.concepts = concepts_of(dataset, clip.grid)
        self.classifier = self.captions = None
        if dataset.classnames is not None and bool((dataset.labels >= 0).all()):
            self.classifier = zero_shot(clip, dataset.classnames, prompts.resolve(options.templates), options)
            with torch.no_grad():
                self.captions = clip.text_classifier(dataset.classnames, [prompts.DEFAULT_TEMPLATE])

    @torch.no_grad()
    def read(self, batch: Batch) -> ImagesRead:
        """Lower tower, the unmodified embedding, and the ground truth of a batch of `shuffled`."""
        residual = self.clip.residual(batch.pixels)
        embedding = None if self.classifier is None else self.clip.embed(residual)
        truth = None if self.concepts is None else truth_of(self.concepts, self.order[batch.index])
        return ImagesRead(residual.float(), embedding, batch.labels, truth)


class Evaluation:
    """The counts of one autoencoder.

    Attributes:
        accumulators: by name, for a fold.
    """

    def __init__(self, reader: ImageReader, sae: SparseAutoencoder) -> None:
        self._reader, self._sae = reader, sae
        clip, size, tokens = reader.clip, sae.config.d_sae, reader.clip.image_tokens
        self._quality = QualityCounts(size, tokens, clip.width, clip.device)
        self._recall = self._contrastive = self._concepts = None
        if reader.classifier is not None and reader.captions is not None:
            self._recall = RecallCounts(MASKINGS, reader.classifier)
            self._contrastive = ContrastiveSums(MASKINGS, reader.captions, clip.logit_scale, reader.batch_size)
        if reader.concepts is not None:
            self._concepts = ConceptCounts(reader.concepts.names, size, tokens, clip.device)

    @property
    def accumulators(self) -> dict[str, Accumulator]:
        parts = {
            "quality": self._quality,
            "recall": self._recall,
            "contrastive": self._contrastive,
            "concepts": self._concepts,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @torch.no_grad()
    def update(self, images: ImagesRead) -> None:
        """Take in a batch."""
        sae, residual = self._sae, images.residual
        latents = sae.encode(residual)
        reconstruction = sae.decode(latents, like=residual)
        self._quality.update(residual, latents, reconstruction)
        if self._concepts is not None and images.truth is not None:
            self._concepts.update(latents, *images.truth)
        if self._recall is not None and self._contrastive is not None and images.embedding is not None:
            embed = self._reader.clip.embed
            cls_only = torch.cat([reconstruction[:, :1], residual[:, 1:]], dim=1)
            embeddings = {
                UNMODIFIED: images.embedding,
                RECONSTRUCTION: embed(reconstruction),
                CLS_ONLY: embed(cls_only),
            }
            self._recall.update(embeddings, images.labels)
            self._contrastive.update(embeddings, images.labels)

    def finalize(self, baseline: ConceptCounts | None = None) -> EvaluateResult:
        """The figures; `baseline`: concept scores to compare with."""
        correct, classified = (None, None) if self._recall is None else self._recall.finalize()
        return EvaluateResult(
            quality=self._quality.finalize(),
            dense_above=self._reader.options.dense_above,
            batch_size=self._reader.batch_size,
            correct=correct,
            classified=classified,
            contrastive=None if self._contrastive is None else self._contrastive.finalize(),
            concepts=None if self._concepts is None else self._concepts.finalize(),
            raw_concepts=None if baseline is None else baseline.finalize(),
        )


def raw_dimensions(reader: ImageReader) -> ConceptCounts | None:
    """Concept counts for :func:`raw_latents`; None where there are no concepts."""
    if reader.concepts is None:
        return None
    clip = reader.clip
    return ConceptCounts(reader.concepts.names, 2 * clip.width, clip.image_tokens, clip.device)


def raw_latents(tokens: Tensor, centre: Tensor) -> pk.SparseLatents:
    """The dimensions of tokens [..., D] as if they were latents: relu(r - centre), relu(centre - r), [N, 2 D].

    What the residual stream says about concepts without an autoencoder; both signs, since latents have one.
    """
    apart = tokens.reshape(-1, tokens.shape[-1]) - centre
    return pk.SparseLatents.from_dense(torch.cat([apart, -apart], dim=1).relu())

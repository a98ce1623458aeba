"""The autoencoders of a sweep judged on the same held-out images in one pass: sparsity against quality and concepts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from patchsae.data import Batch, ImageDataset
from patchsae.disk.runs import Stage
from patchsae.experiments.evaluate.concept_truth import Concepts, Truth, concepts_of, truth_of
from patchsae.experiments.evaluate.concepts import THRESHOLDS, ConceptCounts
from patchsae.experiments.evaluate.quality import QualityCounts
from patchsae.experiments.frontier.result import Point, columns
from patchsae.experiments.frontier.section import section
from patchsae.experiments.options import StreamOptions
from patchsae.experiments.provenance import describe_images
from patchsae.experiments.stream.fold import fold
from patchsae.experiments.stream.fold_state import Accumulator
from patchsae.experiments.stream.job import Job
from patchsae.models.checkpoints.load import load_sae
from patchsae.models.clip import SplitCLIP
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.taps import Taps
from patchsae.parallel.base import Parallel
from patchsae.report import Section
from patchsae.training.sizes import cut, training_sizes
from patchsae.training.sweep.train import Member

TABLE = "frontier.csv"
DENSE_ABOVE = 0.1
"""A latent is dense when it is active on more than this share of the tokens."""


@torch.no_grad()
def run(
    clip: SplitCLIP,
    members: Sequence[Member],
    dataset: ImageDataset,
    job: Job | Stage,
    options: StreamOptions,
    *,
    memory: int,
) -> None:
    """Judge autoencoders that were not trained on `dataset`; leave a table and a report section in the stage.

    All tokens are judged, or CLS alone where training saw nothing else; concept scores are of the patches all the same.
    One pass of images serves all autoencoders that fit into `memory` bytes together. A judgement that was killed begins
    again; it is short.

    Args:
        members: of `patchsae.training.sweep.train.train_grid`; those that diverged are named in the report.
        dataset: images that were not trained on.
        job: its stage receives ``frontier.csv``, a row per autoencoder, and the report's section; anew where the
            members have changed.
        memory: of each process.

    Raises:
        ValueError: all members diverged, or no image can be read.
    """
    trained = [member for member in members if member.diverged is None]
    if not trained:
        raise ValueError(f"all {len(members)} autoencoders of the sweep diverged; expected at least one to judge")
    listed = {member.trial.name: member.diverged or "trained" for member in members}
    job = Job.of(job)
    changed = job.parallel.is_first and (job.stage.config or {}).get("members", listed) != listed

    def write(stage: Stage, points: list[Point]) -> Section:
        stage.write_table(TABLE, columns(points))
        return section(points, members, dataset.name, stage)

    config = job.config(options, images=describe_images(dataset)) | {"members": listed}
    compute = partial(_judge, clip, trained, dataset, options, memory, job.parallel)
    replace(job, overwrite=job.overwrite or changed).make(config, compute, write, device=clip.device)


def _judge(
    clip: SplitCLIP,
    members: Sequence[Member],
    dataset: ImageDataset,
    options: StreamOptions,
    memory: int,
    parallel: Parallel,
) -> list[Point]:
    """A point per member, in the first process; none in the others."""
    concepts = concepts_of(dataset, clip.grid)
    sizes = [_bytes(member, clip, concepts) for member in members]
    points: list[Point] = []
    groups = cut(sizes, memory)
    for number, group in enumerate(groups, 1):
        label = "frontier" + ("" if len(groups) == 1 else f" ({number} of {len(groups)})")
        judges = [_Judge(members[i], clip, concepts) for i in group]
        taps = Taps(clip, sorted({judge.member.trial.layer for judge in judges}))

        def update(batch: Batch, judges: list[_Judge] = judges, taps: Taps = taps) -> None:
            tokens = taps.residual(batch.pixels).float()
            streams = {block: taps.stream(tokens, block) for block in taps.blocks}
            truth = None if concepts is None else truth_of(concepts, batch.index)
            for judge in judges:
                judge.update(streams[judge.member.trial.layer], truth)

        counts = {f"{i}.{name}": part for i, judge in enumerate(judges) for name, part in judge.accumulators.items()}
        folded = fold(dataset, clip.preprocess, update, counts, options, label=label, parallel=parallel)
        folded.require_images(dataset)
        points += [judge.finish() for judge in judges if parallel.is_first]
    return points


def _bytes(member: Member, clip: SplitCLIP, concepts: Concepts | None) -> int:
    """Memory of a judge: the parameters, again in low precision, and what its concept score counts."""
    parameters = training_sizes(member.trial.config, clip.width, clip.image_tokens).parameters
    latents = member.trial.config.expansion * clip.width
    counted = 0 if concepts is None else 8 * latents * len(THRESHOLDS) * (len(concepts.names) + 1)
    return parameters + parameters // 2 + counted


class _Judge:
    """What one autoencoder does to the tokens that stream by."""

    def __init__(self, member: Member, clip: SplitCLIP, concepts: Concepts | None) -> None:
        self.member = member
        self.sae: SparseAutoencoder = load_sae(member.stage.path, clip.device)
        latents, tokens = self.sae.config.d_sae, clip.image_tokens
        self.cls_only = member.trial.config.cls_only
        self.quality = QualityCounts(latents, 1 if self.cls_only else tokens, clip.width, clip.device)
        self.concepts: ConceptCounts | None = None
        if concepts is not None:
            self.concepts = ConceptCounts(concepts.names, latents, tokens, clip.device)

    @property
    def accumulators(self) -> dict[str, Accumulator]:
        return {"quality": self.quality} | ({} if self.concepts is None else {"concepts": self.concepts})

    def update(self, residual: Tensor, truth: Truth | None) -> None:
        judged = residual[:, :1].contiguous() if self.cls_only else residual
        latents = self.sae.encode(judged)
        self.quality.update(judged, latents, self.sae.decode(latents, like=judged))
        if self.concepts is not None and truth is not None:
            self.concepts.update(self.sae.encode(residual) if self.cls_only else latents, *truth)

    def finish(self) -> Point:
        trial, quality = self.member.trial, self.quality.finalize()
        tokens = quality.all
        scores = None if self.concepts is None else self.concepts.finalize()
        option, value = trial.strength
        latents = self.sae.config.d_sae
        return Point(
            name=trial.name,
            variant=trial.config.variant,
            block=trial.layer,
            expansion=trial.config.expansion,
            latents=latents,
            option=option,
            value=float(value),
            l0=tokens.l0,
            explained_variance=tokens.explained_variance,
            nmse=tokens.nmse,
            mse=tokens.mse,
            dead=quality.dead / latents,
            dense=quality.dense(DENSE_ABOVE) / latents,
            concept_precision=math.nan if scores is None else scores.mean_precision,
            concept_iou=math.nan if scores is None else scores.mean_iou,
            base_rate=math.nan if scores is None else float(scores.base_rate.nanmean()),
        )

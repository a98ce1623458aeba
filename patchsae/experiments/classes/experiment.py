"""Order the latents by class, by dataset and at random: the rankings of the masking experiment."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from patchsae.disk.hashing import fingerprint
from patchsae.disk.runs import Stage
from patchsae.experiments.classes.options import ClassesOptions
from patchsae.experiments.classes.rankings import common_latents, order_of, random_rank, rank_by
from patchsae.experiments.classes.result import Rankings
from patchsae.experiments.classes.section import section, shared_latents
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.stream.job import Job
from patchsae.report import Section, figures


def rankings(extraction: Extraction, options: ClassesOptions | None = None) -> Rankings:
    """The rankings that the counts above tau of an extraction give.

    "class": by a_c, the tokens above tau in the class's images; "dataset": by a_D, those in all images; "random": by
    ``options.seed`` alone. Ties go to the lower latent.

    Raises ValueError when the images of the extraction have no labels.
    """
    options = options or ClassesOptions()
    if extraction.class_counts is None or extraction.classnames is None:
        raise ValueError("the extraction was made on images without labels; expected labelled images to rank by class")
    by_class = extraction.class_counts
    if options.common_classes:
        common = common_latents(by_class, options.common_top, options.common_classes)
        by_class = torch.where(common, -1, by_class)
    ranks = {
        "class": rank_by(by_class),
        "dataset": rank_by(extraction.counts),
        "random": random_rank(extraction.latents, options.seed),
    }
    return Rankings(extraction.classnames, ranks, extraction.made_from)


def run(extraction: Extraction, job: Job | Stage, options: ClassesOptions | None = None) -> Rankings:
    """Rank the latents and leave a table, a plot, the rankings and a report section in the stage.

    Args:
        extraction: of labelled images, S latents, C classes.
        job: its stage receives ``rankings.safetensors``, ``classes.json``, ``top_latents.csv``, ``shared_latents.png``
            and the report's section.
        options: see :class:`ClassesOptions`.

    Raises:
        ValueError: the images of the extraction have no labels.
    """
    job, options = Job.of(job), options or ClassesOptions()
    counts = {"counts": extraction.counts}
    if extraction.class_counts is not None:
        counts["class_counts"] = extraction.class_counts
    made_from = {
        "images": extraction.images,
        "threshold": extraction.threshold,
        "counts": fingerprint(counts),
        **extraction.made_from,
    }

    def write(stage: Stage, found: Rankings) -> Section:
        found.save(stage)
        columns = top_latents(extraction, found, options.top)
        stage.write_table("top_latents.csv", columns)
        stage.write_bytes("shared_latents.png", figures.png(shared_latents(extraction, columns)))
        return section(extraction, columns, options)

    job.make(job.config(options, extraction=made_from), partial(rankings, extraction, options), write)
    return Rankings.load(job.stage)


def top_latents(extraction: Extraction, rankings: Rankings, top: int) -> dict[str, list[Any]]:
    """A row for each of the first ``top`` latents of every class; those that a class never saw are left out."""
    assert extraction.class_counts is not None
    assert extraction.class_images is not None
    columns: dict[str, list[Any]] = {
        name: [] for name in ("label", "class", "images", "rank", "latent", "tokens", "tokens_in_dataset", "share")
    }
    first = order_of(rankings.ranks["class"], top)
    for label, latents in enumerate(first.tolist()):
        for rank, latent in enumerate(latents, start=1):
            tokens = int(extraction.class_counts[label, latent])
            if tokens == 0:
                continue
            total = int(extraction.counts[latent])
            row = (label, rankings.classnames[label], int(extraction.class_images[label]), rank, latent, tokens, total)
            for name, value in zip(columns, (*row, tokens / total), strict=True):
                columns[name].append(value)
    return columns

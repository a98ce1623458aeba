"""Order the latents by class, by dataset and at random: the rankings of the masking experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchsae.disk.hashing import fingerprint
from patchsae.experiments.classes import section as classes_section
from patchsae.experiments.classes.rankings import common_latents, order_of, random_rank, rank_by
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.options import ClassesOptions
from patchsae.experiments.provenance import stage_config
from patchsae.experiments.stored import require_range, require_shapes
from patchsae.report import figures

if TYPE_CHECKING:
    from patchsae.disk.runs import Stage

_SHAPES = {"class": "int32 C S", "dataset": "int32 S", "random": "int32 S"}


@dataclass(frozen=True, eq=False)
class Rankings:
    """Orderings of S latents, and the classes they are about."""

    classnames: tuple[str, ...]
    """Name of every label; two classes may share a name."""
    ranks: dict[str, Tensor]
    """"class" int32 [C, S], "dataset" int32 [S], "random" int32 [S]: the position of every latent, 0 is first."""
    made_from: dict[str, Any]
    """CLIP, autoencoder and images of the extraction (``Extraction.made_from``)."""

    @staticmethod
    def load(stage: Stage) -> Rankings:
        """Read what :func:`run` left in the stage."""
        with stage.understanding():
            about, ranks = stage.load_json("classes"), stage.load_tensors("rankings")
            classnames = tuple(about["classnames"])
            require_shapes(ranks, _SHAPES, C=len(classnames))
            for name in _SHAPES:
                require_range(name, ranks[name], 0, ranks["dataset"].numel() - 1)
            return Rankings(classnames, ranks, about.get("made_from", {}))


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


def run(
    extraction: Extraction,
    stage: Stage,
    options: ClassesOptions | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Rankings:
    """Rank the latents and leave a table, a plot, the rankings and a report section in the stage.

    Args:
        extraction: of labelled images, S latents, C classes.
        stage: folder of the results: ``rankings.safetensors``, ``classes.json``, ``top_latents.csv``,
            ``shared_latents.png`` and the report's section.
        options: see :class:`ClassesOptions`.
        settings: what the caller wants recorded, and compared on resume, beside these.
        overwrite: begin again even if the stage is finished.

    Raises:
        ValueError: the images of the extraction have no labels.
    """
    options = options or ClassesOptions()
    counts = {"counts": extraction.counts}
    if extraction.class_counts is not None:
        counts["class_counts"] = extraction.class_counts
    made_from = {
        "images": extraction.images,
        "threshold": extraction.threshold,
        "counts": fingerprint(counts),
        **extraction.made_from,
    }
    with stage:
        if stage.begin(stage_config(options, settings, extraction=made_from), overwrite):
            result = rankings(extraction, options)
            stage.save_tensors("rankings", result.ranks)
            stage.save_json("classes", {"classnames": list(result.classnames), "made_from": result.made_from})
            columns = top_latents(extraction, result, options.top)
            stage.write_table("top_latents.csv", columns)
            stage.write_bytes("shared_latents.png", figures.png(classes_section.shared_latents(extraction, columns)))
            classes_section.section(extraction, columns, options).write(stage)
            stage.finish()
    return Rankings.load(stage)


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

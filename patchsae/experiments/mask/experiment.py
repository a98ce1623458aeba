"""Top-k latent masking: zero-shot accuracy with only the first k latents of a ranking kept, or with those ablated.

Lim et al., arXiv 2412.05276. Every image is masked by the ranking of its ground-truth class. One tower pass
and one encode serve all masks of a batch (:mod:`patchsae.experiments.mask.embeddings`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchsae.data import Batch, ImageDataset
from patchsae.disk.hashing import fingerprint
from patchsae.experiments.any_clip import AnyCLIP
from patchsae.experiments.classes.experiment import Rankings
from patchsae.experiments.extract.experiment import require_fit
from patchsae.experiments.mask.embeddings import Variant, sweep_embeddings, sweep_ks, variants
from patchsae.experiments.mask.recall import RecallCounts
from patchsae.experiments.mask.result import MaskResult
from patchsae.experiments.mask.section import ON_RANKED_IMAGES, accuracy_curves, section
from patchsae.experiments.options import MAY_DIFFER, MaskOptions, SweepOptions
from patchsae.experiments.provenance import describe_sources, require_same_models, stage_config
from patchsae.experiments.stream.fold import FoldResult, discard_state, fold
from patchsae.experiments.zero_shot import zero_shot
from patchsae.models import prompts
from patchsae.models.sae import SparseAutoencoder
from patchsae.parallel.base import Alone, Parallel
from patchsae.report import figures

if TYPE_CHECKING:
    from patchsae.disk.runs import Stage

AGAIN = "`patchsae extract --overwrite`, then `patchsae classes --overwrite`"


def run(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    dataset: ImageDataset,
    rankings: Rankings,
    stage: Stage,
    options: MaskOptions | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    parallel: Parallel | None = None,
) -> MaskResult:
    """Sweep the masks over a labelled dataset and leave tables, a plot and a report section; a stopped run goes on.

    Args:
        clip: split model, also the source of the zero-shot classifier [C, E].
        sae: autoencoder of its residual stream, S latents.
        dataset: images to classify, with the classes of the rankings. Use another split than the one that was
            ranked; where they are the same images, stderr and the report say so.
        rankings: from :func:`patchsae.experiments.classes.experiment.run`.
        stage: folder of the results: ``accuracy.csv`` (a row per variant), ``recall.csv`` (a row per variant and
            class), ``correct.safetensors``, ``sweep.png`` and the report's section.
        options: see :class:`MaskOptions`.
        settings: what the caller wants recorded, and compared on resume, beside these (how things were opened).
        overwrite: begin again even if the stage is finished or holds part of a run.
        parallel: the processes that share the images (see `fold`), all of which call this; None is this one alone.

    Raises:
        ValueError: an image has no label, the classes are not those of the rankings, a ranking does not exist or was
            made with another autoencoder or CLIP, or a template is neither a prompt nor a name.
    """
    options = options or MaskOptions()
    require_fit(clip, sae, dataset)
    sources = describe_sources(clip, sae, dataset)
    ranks = checked_ranks(dataset, rankings, options.rankings)
    require_same_models("rankings is", rankings.made_from, sources, AGAIN)
    templates = prompts.resolve(options.templates)
    ranked = {"fingerprint": fingerprint(ranks), "dataset": rankings.made_from["dataset"]}
    config = stage_config(options, settings, **sources, ranked=ranked)
    same_images = ranked["dataset"]["fingerprint"] == dataset.fingerprint
    parallel = parallel or Alone()
    writes, device = parallel.is_first, str(clip.device)
    if same_images and writes:
        print(f"mask: {ON_RANKED_IMAGES}; another split tells whether the ranking generalises", file=sys.stderr)
    with stage:
        if parallel.broadcast(writes and stage.begin(config, overwrite, device=device, may_differ=MAY_DIFFER)):
            result, folded = _sweep(clip, sae, dataset, ranks, templates, stage, options, parallel)
            if writes:
                result.save(stage)
                stage.write_bytes("sweep.png", figures.png(accuracy_curves(result)))
                section(result, clip, dataset, folded, options, on_ranked_images=same_images).write(stage)
                discard_state(stage)
                stage.finish()
            parallel.barrier()
    return MaskResult.load(stage)


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
    stage: Stage,
    options: MaskOptions,
    parallel: Parallel,
) -> tuple[MaskResult, FoldResult]:
    """The result of all images, where this is the first process."""
    assert dataset.classnames is not None
    ks = sweep_ks(options.ks, sae.config.d_sae)
    classifier = zero_shot(clip, dataset.classnames, templates, options)
    counts = RecallCounts(variants(list(ranks), ks), classifier)
    ranks = {name: rank.to(clip.device) for name, rank in ranks.items()}

    def update(batch: Batch) -> None:
        counts.update(swept(clip, sae, batch, ranks, ks, options), batch.labels)

    parts = {"recall": counts}
    folded = fold(dataset, clip.preprocess, update, parts, options, label="mask", stage=stage, parallel=parallel)
    if folded.used == 0:
        raise ValueError(f"no image of dataset {dataset.name!r} could be read; expected at least one")
    correct, images = counts.finalize()
    return MaskResult(counts.variants, tuple(dataset.classnames), correct, images), folded


def swept(
    clip: AnyCLIP,
    sae: SparseAutoencoder,
    batch: Batch,
    ranks: Mapping[str, Tensor],
    ks: Sequence[int],
    options: SweepOptions,
) -> dict[Variant, Tensor]:
    """:func:`sweep_embeddings` of a batch with the settings of an experiment."""
    return sweep_embeddings(
        clip,
        sae,
        batch.pixels,
        batch.labels,
        ranks,
        ks,
        budget_mb=options.budget_mb,
        bias_offset=options.bias_offset,
        keep_prompt_tokens=options.keep_prompt_tokens,
    )

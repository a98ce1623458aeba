"""Verbs that read latents: evaluate, extract, classes, mask, explain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from patchsae.cli.choices import Images, Model
from patchsae.cli.verbs.shared import PLAIN, renew_report, require_prompts, stage_of, together
from patchsae.experiments.classes.options import ClassesOptions
from patchsae.experiments.evaluate.options import EvaluateOptions
from patchsae.experiments.explain.options import ExplainOptions
from patchsae.experiments.extract.options import ExtractOptions
from patchsae.experiments.mask.options import MaskOptions

if TYPE_CHECKING:
    from patchsae.data import ImageDataset
    from patchsae.disk.runs import Run
    from patchsae.experiments.explain import References
    from patchsae.models.clip import SplitCLIP
    from patchsae.models.sae import SparseAutoencoder


@dataclass(frozen=True)
class Explaining:
    """What `patchsae explain` shows and writes, and through which SAE."""

    run: Path
    """directory of the experiment; the result is RUN/NAME."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """image files."""
    index: tuple[int, ...] = ()
    """positions in the dataset of --images and --split to explain, beside or instead of files."""
    sae: str | None = None
    """a checkpoint; left out: RUN/train."""
    extract: str | None = None
    """the extraction that has the reference images; left out: RUN/extract where it is finished."""
    name: str = "explain"
    """name of the result."""


def evaluate(
    run: Path,
    images: Images,
    model: Model,
    options: EvaluateOptions,
    sae: str | None = None,
    name: str = "evaluate",
    overwrite: bool = False,
) -> None:
    """Measure an autoencoder: reconstruction, sparsity, what CLIP still classifies through it, concept scores.

    Evaluate on images that it was not trained on (`--split test`). `torchrun --nproc-per-node N -m -- patchsae evaluate
    ...` shares the images among N processes.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        sae: a checkpoint (file, directory or Hub id); left out: RUN/train.
        name: another name keeps several evaluations side by side.
        overwrite: start again.
    """
    from patchsae.cli import opening
    from patchsae.experiments import Job
    from patchsae.experiments import evaluate as experiment

    require_prompts(options.templates)
    with together(run, model) as (model, parallel):
        clip, autoencoder, dataset, origin = _open(run, sae, images, model)
        options = opening.as_trained(options, origin)
        job = Job(stage_of(run, name, "evaluate"), origin, overwrite, parallel)
        experiment.run(clip, autoencoder, dataset, job, options)


def extract(
    run: Path,
    images: Images,
    model: Model,
    options: ExtractOptions,
    sae: str | None = None,
    name: str = "extract",
    overwrite: bool = False,
) -> None:
    """Read the latents in one pass over images: frequencies, counts by class, reference images, top patches.

    `torchrun --nproc-per-node N -m -- patchsae extract ...` shares the images among N processes.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        sae: a checkpoint (file, directory or Hub id); left out: RUN/train.
        name: another name keeps several extractions side by side.
        overwrite: start again.
    """
    from patchsae.cli import opening
    from patchsae.experiments import Job
    from patchsae.experiments import extract as experiment

    with together(run, model) as (model, parallel):
        clip, autoencoder, dataset, origin = _open(run, sae, images, model)
        options = opening.as_trained(options, origin)
        job = Job(stage_of(run, name, "extract"), origin, overwrite, parallel)
        experiment.run(clip, autoencoder, dataset, job, options)


def classes(
    run: Path, options: ClassesOptions, extract: str = "extract", name: str = "classes", overwrite: bool = False
) -> None:
    """Rank the latents of every class, of the whole dataset, and at random.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        extract: the extraction to rank, RUN/EXTRACT.
        name: name of the result.
        overwrite: start again.
    """
    from patchsae.cli import opening
    from patchsae.disk.runs import Run
    from patchsae.experiments import Job
    from patchsae.experiments import classes as experiment
    from patchsae.experiments.extract import Extraction

    found = Extraction.load(opening.finished_stage(Run(run), extract, "extract", "--extract NAME"))
    experiment.run(found, Job(stage_of(run, name, "classes"), {"extract": extract}, overwrite), options)
    renew_report(run)


def mask(
    run: Path,
    images: Images,
    model: Model,
    options: MaskOptions,
    sae: str | None = None,
    classes: str = "classes",
    name: str = "mask",
    overwrite: bool = False,
) -> None:
    """Classify with only the top k latents kept, or with them ablated, for every k and ranking.

    Rank on one split (`extract`, `classes`) and evaluate here on another (`--split test`). Runs under torchrun, as
    `extract` does.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        sae: a checkpoint; left out: RUN/train.
        classes: the rankings to use, RUN/CLASSES.
        name: name of the result.
        overwrite: start again.
    """
    from patchsae.cli import opening
    from patchsae.disk.runs import Run
    from patchsae.experiments import Job
    from patchsae.experiments import mask as experiment
    from patchsae.experiments.classes import Rankings

    require_prompts(options.templates)
    rankings = Rankings.load(opening.finished_stage(Run(run), classes, "classes", "--classes NAME"))
    with together(run, model) as (model, parallel):
        clip, autoencoder, dataset, origin = _open(run, sae, images, model)
        options = opening.as_trained(options, origin)
        job = Job(stage_of(run, name, "mask"), origin, overwrite, parallel)
        experiment.run(clip, autoencoder, dataset, rankings, job, options)


def explain(how: Annotated[Explaining, PLAIN], images: Images, model: Model, options: ExplainOptions) -> None:
    """Show the top latents of images, or of one patch, with heatmaps and reference images.

    Explaining again under the same name replaces what was there.
    """
    from patchsae.cli import opening
    from patchsae.data import load_image
    from patchsae.disk.names import written
    from patchsae.disk.runs import Run
    from patchsae.experiments import Job
    from patchsae.experiments import explain as experiment
    from patchsae.words import counted

    if not how.paths and not how.index:
        raise ValueError("nothing to explain: give image files, or --index with positions in --images")
    autoencoder = opening.autoencoder(Run(how.run), how.sae, opening.device(model))
    pictures = {written(str(path)): load_image(path) for path in how.paths}
    dataset = None
    if how.index:
        dataset, _ = opening.images(images, autoencoder.config.metadata)
        samples = [dataset.sample(opening.position(dataset, i)) for i in how.index]
        pictures |= {sample.id: sample.image for sample in samples}
    references = _references(Run(how.run), how.extract)
    clip = opening.clip(model, autoencoder.config.metadata)
    opening.say_what_is_used(clip, dataset, counted(len(pictures), "image"))
    job = Job(stage_of(how.run, how.name, "explain"), overwrite=True)
    experiment.run(clip, autoencoder, pictures, job, options, references=references)
    renew_report(how.run)


def _open(
    run: Path, sae: str | None, images: Images, model: Model
) -> tuple[SplitCLIP, SparseAutoencoder, ImageDataset, dict[str, Any]]:
    """CLIP, SAE, images, and what to record of them."""
    from patchsae.cli import opening
    from patchsae.disk.runs import Run

    autoencoder = opening.autoencoder(Run(run), sae, opening.device(model))
    origin = autoencoder.config.metadata
    clip, dataset, found = opening.clip_and_images(model, images, origin)
    return clip, autoencoder, dataset, found | ({} if sae is None else {"sae": sae})


def _references(run: Run, extract: str | None) -> References | None:
    """The extraction with the images it refers to; None where none was named and there is none."""
    from patchsae.cli import opening
    from patchsae.experiments.explain import References
    from patchsae.experiments.extract import Extraction

    if extract is None and not run.stage("extract").finished:
        return None
    stage = opening.finished_stage(run, extract or "extract", "extract", "--extract NAME")
    dataset, _ = opening.images(Images(), stage.config or {})
    return References(Extraction.load(stage), dataset)

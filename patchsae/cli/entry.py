"""The command line: ``patchsae VERB``. Each verb is one function; nothing heavy is imported before it is needed."""

from __future__ import annotations

import contextvars
import difflib
import functools
import inspect
import io
import itertools
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, get_type_hints

import tyro

from patchsae.activations.config import CacheOptions
from patchsae.adapt.config import AdaptOptions
from patchsae.cli.choices import FewImages, Images, Model, Sides
from patchsae.disk.again import GIVEN
from patchsae.errors import PatchsaeError
from patchsae.experiments.options import (
    CellOptions,
    ClassesOptions,
    CompareOptions,
    EvaluateOptions,
    ExplainOptions,
    ExtractOptions,
    MaskOptions,
    SweepOptions,
    cross_options,
)
from patchsae.interrupt import Interrupted
from patchsae.tinyclip.config import TinyClipConfig
from patchsae.training.config import TrainConfig
from patchsae.training.grid_config import Grid, GridOptions, Tower

if TYPE_CHECKING:
    from patchsae.data import ImageDataset
    from patchsae.disk.runs import Run, Stage
    from patchsae.experiments.explain.experiment import References
    from patchsae.models.clip import SplitCLIP
    from patchsae.models.sae import SparseAutoencoder
    from patchsae.parallel.base import Parallel


def train(
    images: Images,
    model: Model,
    recipe: TrainConfig,
    run: Path | None = None,
    preset: str | None = None,
    dry_run: bool = False,
    cache: Path | None = None,
    log: tuple[str, ...] = (),
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a sparse autoencoder on the patch tokens of a frozen CLIP; the defaults are the released recipe.

    A training that was stopped goes on when the same command is given again. `torchrun --nproc-per-node N -m --
    patchsae train ...` trains in N processes.

    Args:
        run: directory of the whole experiment; the result is RUN/train. Only --dry-run does without it.
        preset: "paper", "quick", another that is shipped, or a file NAME.toml of options. An option given beside it
            comes before it.
        dry_run: print what the training would take (steps, memory, disk, and time from a measurement of ten seconds)
            and end without writing anything.
        cache: train on what `patchsae cache` wrote to this folder, and not on images through the CLIP. --images,
            --model and --dtype, where given, must be those of the cache.
        log: "tensorboard" and "wandb", beside RUN/train/metrics.jsonl.
        workers: processes that decode images; 0 decodes in this one.
        resume: only go on; an error where there is no checkpoint to go on from.
        overwrite: start again even if RUN/train is finished or holds part of a training.
    """
    from patchsae.cli import opening
    from patchsae.parallel.base import open_parallel
    from patchsae.training import checkpoint, trainer
    from patchsae.training.loggers import check_names

    check_names(log)
    if dry_run:
        _print_estimate(images, model, recipe, cache, workers)
        return
    if run is None:
        raise ValueError("--run is not given; expected the directory of the experiment")
    if resume and overwrite:
        raise ValueError("--resume goes on and --overwrite starts again: give one of them")
    stage = _stage(run, opening.TRAIN, "train")
    if resume and not (checkpoint.exists(stage.path / checkpoint.FOLDER) or stage.finished):
        raise FileNotFoundError(f"{stage.path} holds no checkpoint to resume; leave --resume out to start")
    with open_parallel(recipe.latent_shards, opening.device(model)) as parallel:
        model = replace(model, device=str(parallel.device))
        if cache is not None:
            _require_of_cache(cache, images, model)
            trainer.train_from_cache(cache, recipe, stage, overwrite=overwrite, log=log, parallel=parallel)
        else:
            clip, dataset, origin = opening.clip_and_images(model, images, {}, default="shapes")
            trainer.train(
                clip,
                dataset,
                recipe,
                stage,
                origin=origin,
                workers=workers,
                overwrite=overwrite,
                log=log,
                parallel=parallel,
            )
        if parallel.is_first:
            _report(run)


def _print_estimate(images: Images, model: Model, recipe: TrainConfig, cache: Path | None, workers: int) -> None:
    """What a training would take. A named CLIP gets random weights: they are as fast, and nothing is downloaded."""
    from patchsae.cli import opening
    from patchsae.training.estimate import estimate, estimate_from_cache

    if cache is not None:
        found = estimate_from_cache(cache, recipe, device=opening.device(model))
    else:
        clip, dataset, _ = opening.clip_and_images(opening.without_download(model), images, {}, default="shapes")
        found = estimate(clip, dataset, recipe, workers=workers)
    print("\n".join(found.lines()))


def sweep(
    run: Path,
    images: Images,
    tower: Tower,
    grid: Grid,
    options: GridOptions,
    preset: str | None = None,
    workers: int = 0,
    name: str = "sweep",
    overwrite: bool = False,
) -> None:
    """Train a grid of autoencoders on one pass of activations; plot sparsity against quality and concept score.

    Every combination of --variant, --expansion, --layer and the variant's sparsity option (--l1, --k or --l0) is
    trained. A sweep that was stopped goes on when the same command is given again; a larger grid adds to it.

    Args:
        run: directory of the experiment; the autoencoders are the stages of RUN/NAME-saes, table and plots RUN/NAME.
        preset: as for `train`; its values may be lists where the options take several.
        workers: processes that decode images; 0 decodes in this one.
        name: another name keeps several sweeps side by side.
        overwrite: train all of them again.
    """
    from patchsae import report
    from patchsae.cli import opening
    from patchsae.disk.runs import Run
    from patchsae.experiments.frontier import experiment as frontier
    from patchsae.experiments.options import StreamOptions
    from patchsae.training.grid import train_grid
    from patchsae.training.sizes import free_memory

    dataset, origin = opening.images(images, {}, default="shapes")
    held_out = Images(
        options.test_images or origin["images"], options.test_split, options.test_limit, outside=images.outside
    )
    test, tested = opening.images(held_out, {}, option="--test-split")
    if all(tested.get(name) == origin.get(name) for name in ("images", "split")):
        raise ValueError(f"--test-split is {options.test_split!r}, which is trained on; expected another split")
    clip = opening.clip(tower.clip, {})
    opening.say_what_is_used(clip, dataset)
    memory = int(1e9 * options.memory_gb) if options.memory_gb else free_memory(str(clip.device)) * 4 // 5
    cells, saes = grid.cells(tower.blocks(clip.layers)), Run(run / f"{name}-saes")
    members = train_grid(clip, dataset, cells, saes, memory=memory, origin=origin, workers=workers, overwrite=overwrite)
    report.build(saes)
    judging = StreamOptions(workers=workers, on_bad_image=grid.on_bad_image)
    frontier.run(
        clip, members, test, _stage(run, name, "sweep"), judging, memory=memory, settings=tested, overwrite=overwrite
    )
    _report(run)


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
    from patchsae.experiments.evaluate import experiment

    _require_prompts(options.templates)
    with _together(run, model) as (model, parallel):
        clip, autoencoder, dataset, origin = _open(run, sae, images, model)
        options = opening.as_trained(options, origin)
        stage = _stage(run, name, "evaluate")
        experiment.run(
            clip, autoencoder, dataset, stage, options, settings=origin, overwrite=overwrite, parallel=parallel
        )


def cache(
    out: Path,
    images: Images,
    model: Model,
    options: CacheOptions,
    workers: int = 0,
    check: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the residual stream of images to disk, to train on many times.

    A writer that was stopped goes on when the same command is given again, and what it has written can be trained on.

    Args:
        out: folder of the cache.
        workers: processes that decode images; 0 decodes in this one.
        check: read a cache and write anew what is damaged, from the model and the images that it was made of.
        overwrite: start again.
    """
    from patchsae.activations import CacheIndex, repair_cache, write_cache
    from patchsae.cli import opening
    from patchsae.data.left_out import inherited
    from patchsae.words import counted

    if check:
        index = CacheIndex.load(out)
        as_written = replace(model, dtype=index.origin.get("dtype", model.dtype))
        clip, dataset, _ = opening.clip_and_images(as_written, images, {**index.origin, **index.model})
        repaired = repair_cache(clip, dataset, out, workers)
        print(f"{out}: {counted(len(index.shards), 'shard')}; written anew: {', '.join(repaired) or 'none'}")
        return
    clip, dataset, origin = opening.clip_and_images(model, images, {}, default="shapes")
    origin |= {"dtype": model.dtype, **inherited(options.on_bad_image)}
    written = write_cache(clip, dataset, out, options, origin=origin, workers=workers, overwrite=overwrite)
    images_written = counted(sum(shard.images for shard in written.shards), "image")
    print(f"{out}: {images_written} in {counted(len(written.shards), 'shard')}")


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
    from patchsae.experiments.extract import experiment

    with _together(run, model) as (model, parallel):
        clip, autoencoder, dataset, origin = _open(run, sae, images, model)
        options = opening.as_trained(options, origin)
        stage = _stage(run, name, "extract")
        experiment.run(
            clip, autoencoder, dataset, stage, options, settings=origin, overwrite=overwrite, parallel=parallel
        )


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
    from patchsae.experiments.classes import experiment
    from patchsae.experiments.extract.result import Extraction

    found = Extraction.load(opening.finished_stage(Run(run), extract, "extract", "--extract NAME"))
    experiment.run(found, _stage(run, name, "classes"), options, settings={"extract": extract}, overwrite=overwrite)
    _report(run)


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
    from patchsae.experiments.classes.experiment import Rankings
    from patchsae.experiments.mask import experiment as masking

    _require_prompts(options.templates)
    rankings = Rankings.load(opening.finished_stage(Run(run), classes, "classes", "--classes NAME"))
    with _together(run, model) as (model, parallel):
        clip, autoencoder, dataset, origin = _open(run, sae, images, model)
        options = opening.as_trained(options, origin)
        masking.run(
            clip,
            autoencoder,
            dataset,
            rankings,
            _stage(run, name, "mask"),
            options,
            settings=origin,
            overwrite=overwrite,
            parallel=parallel,
        )


def compare(
    run: Path,
    images: Images,
    model: Model,
    sides: Sides,
    options: CompareOptions,
    sweep: SweepOptions,
    sae: str | None = None,
    name: str = "compare",
    overwrite: bool = False,
) -> None:
    """Two models on the same images, or one model on two datasets, through one SAE: what changes.

    With --test-split (or --test-images) both models also classify those images, with the latents of the classes kept
    and ablated as either model ranks them. Runs under torchrun, as `extract` does.

    Args:
        run: directory of the experiment; the results are RUN/NAME and, of the test images, RUN/NAME-test.
        sae: a checkpoint; left out: RUN/train.
        name: name of the result.
        overwrite: start again.
    """
    from patchsae.cli import opening
    from patchsae.cli.sides import open_sides
    from patchsae.disk.runs import Run
    from patchsae.experiments.compare import crossed
    from patchsae.experiments.compare import experiment as adaptation

    sides.require_two()
    _require_prompts(options.templates)
    with _together(run, model) as (model, parallel):
        reader = opening.autoencoder(Run(run), sae, opening.device(model))
        found = open_sides(sides, images, model, reader)
        options = opening.as_trained(options, found.settings)
        given = {} if sae is None else {"sae": sae}
        pair = (found.first, found.second, reader)
        compared = adaptation.run(
            *pair,
            _stage(run, name, "compare"),
            options,
            settings=found.settings | given,
            overwrite=overwrite,
            parallel=parallel,
        )
        if found.tested is not None:
            crossed.run(
                *pair,
                compared,
                found.tested,
                _stage(run, f"{name}-test", "compare"),
                cross_options(options, sweep),
                settings=found.test_settings | given,
                overwrite=overwrite,
                parallel=parallel,
            )


def table(
    run: Path,
    cells: Path,
    model: Model,
    sweep: SweepOptions,
    options: CellOptions,
    mask: bool = False,
    share: str = "high_either",
    sae: str | None = None,
    name: str = "table",
    overwrite: bool = False,
) -> None:
    """One table of what adaptation changes, over any list of datasets and adapters, as in the paper.

    A table that was stopped goes on with the first cell that is not finished; new cells may be added to the list.

    Args:
        run: directory of the experiment; the table is RUN/NAME, the cells are the stages of RUN/NAME-cells.
        cells: TOML file with a table [[cells]] for each: name, images, adapter; also rank_split ("train"), test_split
            ("test"), rank_limit, test_limit, test_images, outside, dataset, label, templates. [defaults] holds for all.
        mask: also mask the latents of every cell's classes in both models, by the rankings of both.
        share: what the shares of table.md divide by: high, high_a, high_b, high_either, active_a, active_b,
            active_either or all (table.csv has them all).
        sae: a checkpoint; left out: RUN/train.
        name: name of the result.
        overwrite: run the cells again.
    """
    from functools import partial

    from patchsae.cli import opening
    from patchsae.cli.sides import open_cell
    from patchsae.disk.runs import Run
    from patchsae.experiments.table import experiment
    from patchsae.experiments.table.cells import read_cells

    listed = read_cells(cells)
    experiment.require_share(share)
    for cell in listed:
        _require_prompts(cell.templates or options.templates)
        if cell.adapter is not None:
            opening.adapter_folder(cell.adapter)
    autoencoder = opening.autoencoder(Run(run), sae, opening.device(model))
    clip = opening.clip(model, autoencoder.config.metadata)
    experiment.run(
        listed,
        partial(open_cell, clip=clip),
        autoencoder,
        Run(run / f"{name}-cells"),
        _stage(run, name, "table"),
        options,
        cross_options(options, sweep, swept=mask),
        share=share,
        overwrite=overwrite,
    )
    print((run / name / "table.md").read_text(), end="")
    _report(run)


def correlate(run: Path, stages: tuple[str, ...], name: str = "correlate", overwrite: bool = False) -> None:
    """Correlate what datasets, or models, activate: a matrix over finished extractions and comparisons.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        stages: extractions and comparisons, by their names in RUN (a comparison has two entries, a side each).
        name: name of the result.
        overwrite: start again.
    """
    from patchsae.cli import opening
    from patchsae.disk.runs import Run
    from patchsae.experiments import correlate as correlation

    made_by = {stage: "compare" if stage.startswith("compare") else "extract" for stage in stages}
    finished = [opening.finished_stage(Run(run), stage, made_by[stage], "other --stages") for stage in stages]
    found = [activity for stage in finished for activity in correlation.activities(stage)]
    correlation.run(found, _stage(run, name, "correlate"), settings={"stages": list(stages)}, overwrite=overwrite)
    _report(run)


def adapt(
    run: Path,
    images: FewImages,
    model: Model,
    options: AdaptOptions,
    name: str | None = None,
    overwrite: bool = False,
) -> None:
    """Train an adapter (MaPLe, CoOp, VPT, LoRA, linear probe) on few images and test it on base, novel, other classes.

    The model is the one of RUN/train where there is one and no other is named. An adaptation that was stopped goes on
    when the same command is given again.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        name: left out: adapt-ADAPTER-seedSEED.
        overwrite: start again.
    """
    from patchsae.adapt.run import adapt as train_and_test
    from patchsae.adapt.task import make_task
    from patchsae.cli import opening
    from patchsae.disk.runs import Run

    options.require_targets(images.targets)
    _require_prompts(options.templates)
    origin = opening.trained_on(Run(run))
    train, test, targets, found = opening.few_images(images, origin)
    options = opening.as_trained(options, found)
    task = make_task(options, train, test, targets)
    clip = opening.clip(model, origin)
    opening.say_what_is_used(clip, task.training)
    stage = _stage(run, name or f"adapt-{options.adapter}-seed{options.seed}", "adapt")
    train_and_test(clip, task, options, stage, settings=found | {"dtype": model.dtype}, overwrite=overwrite)
    _report(run)


def explain(
    run: Path,
    paths: tyro.conf.Positional[tuple[Path, ...]],
    images: Images,
    model: Model,
    options: ExplainOptions,
    index: tuple[int, ...] = (),
    sae: str | None = None,
    extract: str | None = None,
    name: str = "explain",
) -> None:
    """Show the top latents of images, or of one patch, with heatmaps and reference images.

    Explaining again under the same name replaces what was there.

    Args:
        run: directory of the experiment; the result is RUN/NAME.
        paths: image files.
        index: positions in the dataset of --images and --split to explain, beside or instead of files.
        sae: a checkpoint; left out: RUN/train.
        extract: the extraction that has the reference images; left out: RUN/extract where it is finished.
        name: name of the result.
    """
    from patchsae.cli import opening
    from patchsae.data import load_image
    from patchsae.disk.names import written
    from patchsae.disk.runs import Run
    from patchsae.experiments.explain import experiment
    from patchsae.words import counted

    if not paths and not index:
        raise ValueError("nothing to explain: give image files, or --index with positions in --images")
    autoencoder = opening.autoencoder(Run(run), sae, opening.device(model))
    pictures = {written(str(path)): load_image(path) for path in paths}
    dataset = None
    if index:
        dataset, _ = opening.images(images, autoencoder.config.metadata)
        samples = [dataset.sample(opening.position(dataset, i)) for i in index]
        pictures |= {sample.id: sample.image for sample in samples}
    references = _references(Run(run), extract)
    clip = opening.clip(model, autoencoder.config.metadata)
    opening.say_what_is_used(clip, dataset, counted(len(pictures), "image"))
    stage = _stage(run, name, "explain")
    experiment.run(clip, autoencoder, pictures, stage, options, references=references, overwrite=True)
    _report(run)


def check(run: tyro.conf.Positional[Path]) -> None:
    """Look through every file that a run holds, by its checksum, and say what to run again.

    Exits with status 1 where a file is damaged, or a stage was made from an earlier training.

    Args:
        run: directory of the experiment, one stage of it, or a cache.
    """
    from patchsae.cli.check import check as look_through
    from patchsae.cli.check import summary

    found = look_through(run)
    for stage in found:
        for line in stage.lines:
            print(line)
    print(summary(found))
    if any(stage.damaged or stage.stale for stage in found):
        raise SystemExit(1)


def data_check(
    source: tyro.conf.Positional[str], split: str | None = None, workers: int = 0, outside: bool = False
) -> None:
    """Look through a dataset: layout, classes, counts, sizes, files that cannot be decoded.

    Exits with status 1 where something is wrong.

    Args:
        source: path, glob or "shapes", as for --images.
        split: one split; left out: all.
        workers: processes that decode images; 0 decodes in this one.
        outside: as for --images.
    """
    from patchsae import progress
    from patchsae.data import check

    with progress.track(None, "data check") as shown:
        report = check(source, split, workers, _increments(shown.advance), outside)
    for line in report.lines():
        print(line)
    if not report.ok:
        raise SystemExit(1)


def _increments(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """From (images read of a split, images in it) to images read since the last call."""
    last = 0

    def update(done: int, _: int) -> None:
        nonlocal last
        advance(done - last if done > last else done)
        last = done

    return update


def tinyclip(
    out: Path,
    images: Images,
    config: TinyClipConfig,
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    workers: int = 1,
    device: str = "cpu",
    measure: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a small CLIP, or fine-tune one (--from), on captions of the shapes world or the class names of a dataset.

    Args:
        out: folder of the checkpoint (open_clip's local-dir layout; use it as --model local-dir:OUT).
        from_: "tiny" or a folder of the same layout to go on from.
        workers: processes that decode images.
        device: "cpu" or "cuda".
        measure: afterwards, or of a checkpoint that is there already, measure zero-shot accuracy on combinations of the
            shapes world that no training saw; the figures go to OUT/zero_shot.json.
        overwrite: train even if OUT holds a checkpoint.
    """
    if overwrite or not (out / "open_clip_config.json").exists():
        _train_clip(out, images, config, from_, workers, device)
    else:
        print(f"{out}: there is a checkpoint already (--overwrite trains again)")
    if measure:
        from patchsae.tinyclip.zero_shot import measure_shapes

        for prompts, accuracy in measure_shapes(out)["accuracy"].items():
            print(f"{prompts}: " + ", ".join(f"{factor} {share:.1%}" for factor, share in accuracy.items()))


def _train_clip(
    out: Path, images: Images, config: TinyClipConfig, from_: str | None, workers: int, device: str
) -> None:
    from patchsae.cli import opening
    from patchsae.tinyclip import train_clip
    from patchsae.words import counted

    start = None if from_ is None else opening.clip_folder(from_)
    device = opening.device(Model(device=device))
    dataset, _ = opening.images(images, {}, default="shapes")
    record = train_clip(dataset, out, config, start=start, workers=workers, device=device)
    print(f"{out}: {counted(record.steps, 'step')} in {record.minutes} min; use it as --model local-dir:{out}")


def bench(
    op: tuple[str, ...] = (),
    size: Literal["small", "image", "paper", "large"] = "small",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    rounds: int = 5,
    json: Path | None = None,
) -> None:
    """Time every op against plain PyTorch, after checking its answer.

    Args:
        op: names of ops; left out: all.
        size: "small" takes seconds; the others are ViT-B/16 with 49,152 latents and one image, 8 ("paper"; 128 on a
            GPU) or 32 (minutes on a CPU).
        device: where.
        rounds: timings of each; the median counts.
        json: also write the records here.
    """
    from patchsae.bench.run import bench as measure
    from patchsae.cli import opening

    measure(op, size, opening.device(Model(device=device)), rounds, json)


def doctor() -> None:
    """Print what runs here and why: device, implementation of each op, versions, threads."""
    from patchsae.cli import doctor as description

    for line in description.lines():
        print(line)


VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "sweep": sweep,
    "cache": cache,
    "evaluate": evaluate,
    "extract": extract,
    "classes": classes,
    "mask": mask,
    "adapt": adapt,
    "compare": compare,
    "table": table,
    "correlate": correlate,
    "explain": explain,
    "check": check,
    "data check": data_check,
    "tinyclip": tinyclip,
    "bench": bench,
    "doctor": doctor,
}

TOGETHER = ("train", "evaluate", "extract", "mask", "compare")
"""Verbs that several processes of `torchrun` can share."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A mistake of the user ends with a message and status 2; PATCHSAE_TRACEBACK=1 shows where it was.

    Where nobody reads on (`patchsae ... | head`) it ends as other programs do, without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text, nor the terminal UTF-8
    try:
        try:
            _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _hang_up():
            raise
        raise SystemExit(128 + signal.SIGPIPE) from None


def _hang_up() -> bool:
    """Whether a reader of our output is gone; what is still buffered for it goes nowhere."""
    outputs = select.poll()
    for stream in (sys.stdout, sys.stderr):
        outputs.register(stream.fileno(), select.POLLOUT)
    gone = [descriptor for descriptor, event in outputs.poll(0) if event & select.POLLERR]
    for descriptor in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)


def _main(arguments: Sequence[str] | None) -> None:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    if argv[0] == "--version":
        print(metadata.version("patchsae"))
        return
    verb, rest = _verb(argv)
    if verb is None:
        raise SystemExit(_no_verb(argv))
    processes, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if processes > 1 and verb not in TOGETHER:
        shared = ", ".join(TOGETHER)
        raise SystemExit(f"patchsae {verb} runs in one process: start it without torchrun (that is for {shared})")
    warnings.showwarning = _say_warning
    try:
        function = _with_preset(VERBS[verb], rest)
        context = contextvars.copy_context()
        context.run(GIVEN.set, tuple(rest))
        context.run(tyro.cli, function, prog=f"patchsae {verb}", args=rest, config=(tyro.conf.OmitArgPrefixes,))
    except Interrupted as stop:
        if rank == 0:  # the others were stopped by the same signal
            print(stop, file=sys.stderr)
        raise
    except KeyboardInterrupt:  # before or after the long work, which notes signals itself
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, PatchsaeError) as error:
        if os.environ.get("PATCHSAE_TRACEBACK"):
            raise
        print(f"patchsae {verb}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What a user is warned of as a line; of programmers' warnings, where they come from too."""
    place = "" if category is UserWarning else f" ({category.__name__}, {filename}:{lineno})"
    print(f"warning: {message}{place}", file=file or sys.stderr)


def _with_preset(verb: Callable[..., None], arguments: Sequence[str]) -> Callable[..., None]:
    """The verb with what --preset says as its defaults: options come before it."""
    hints = get_type_hints(verb) if "preset" in inspect.signature(verb).parameters else {}
    chosen = [value for word, value in itertools.pairwise(arguments) if word == "--preset"]
    chosen += [word.removeprefix("--preset=") for word in arguments if word.startswith("--preset=")]
    if not hints or not chosen:
        return verb
    from patchsae.training import presets

    expected = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    given = {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    return functools.partial(verb, **presets.groups(chosen[-1], expected, given))


def _verb(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The verb, of one or two words, and what follows it."""
    for words in (2, 1):
        name = " ".join(argv[:words])
        if name in VERBS:
            return name, list(argv[words:])
    return None, []


def _no_verb(argv: Sequence[str]) -> str:
    """What was meant by a word that is no verb, or else what there is."""
    words = (" ".join(argv[:2]), argv[0])
    close = [verb for verb in VERBS if verb.startswith(f"{argv[0]} ")]
    close = close or [verb for word in words for verb in difflib.get_close_matches(word, VERBS, 1, 0.7)][:1]
    said = f"patchsae: there is no verb {argv[0]!r}"
    return f"{said}; did you mean {' or '.join(close)}?" if close else f"{_overview()}\n\n{said}"


def _overview() -> str:
    lines = ["usage: patchsae VERB [options]    (patchsae VERB --help tells more)", ""]
    width = max(map(len, VERBS))
    lines += [f"  {name:<{width}}  {(function.__doc__ or '').splitlines()[0]}" for name, function in VERBS.items()]
    return "\n".join(lines)


def _require_prompts(templates: Sequence[str]) -> None:
    """ValueError for templates that are none, before anything is loaded."""
    from patchsae.models import prompts

    prompts.resolve(templates)


def _stage(run: Path, name: str, verb: str) -> Stage:
    from patchsae.disk.runs import Run

    return Run(run).stage(name, verb)


def _report(run: Path) -> None:
    from patchsae import report
    from patchsae.disk.runs import Run

    print(f"report: {report.build(Run(run)).resolve()}")


@contextmanager
def _together(run: Path, model: Model) -> Iterator[tuple[Model, Parallel]]:
    """The processes that share the images, and the model on this one's device; the first one renews the report."""
    from patchsae.cli import opening
    from patchsae.parallel.base import open_parallel

    with open_parallel(1, opening.device(model)) as parallel:
        yield replace(model, device=str(parallel.device)), parallel
        if parallel.is_first:
            _report(run)


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


def _require_of_cache(cache: Path, images: Images, model: Model) -> None:
    """Images and model that were named beside a cache have to be those that it was written from."""
    from patchsae.activations import CacheIndex
    from patchsae.cli import opening

    index = CacheIndex.load(cache)
    dtype = index.origin.get("dtype", model.dtype)
    if model.dtype not in (Model().dtype, dtype):
        raise ValueError(f"--dtype is {model.dtype}; {cache} was written in {dtype}")
    if replace(model, device="auto", dtype=Model().dtype) != Model():
        named = replace(model, dtype=dtype)
        index.require(clip=opening.clip(named, index.model))
    if images != Images():
        index.require(dataset=opening.images(images, index.origin)[0])


def _references(run: Run, extract: str | None) -> References | None:
    """The extraction with the images it refers to; None where none was named and there is none."""
    from patchsae.cli import opening
    from patchsae.experiments.explain.experiment import References
    from patchsae.experiments.extract.result import Extraction

    if extract is None and not run.stage("extract").finished:
        return None
    stage = opening.finished_stage(run, extract or "extract", "extract", "--extract NAME")
    dataset, _ = opening.images(Images(), stage.config or {})
    return References(Extraction.load(stage), dataset)

"""Verbs that make and fill an autoencoder: train, sweep, cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from patchsae.activations.options import CacheOptions
from patchsae.cli.choices import Images, Model, Tower
from patchsae.cli.verbs.shared import PLAIN, renew_report, stage_of
from patchsae.training.config import TrainConfig
from patchsae.training.sweep.grid import Grid
from patchsae.training.sweep.options import SweepOptions

if TYPE_CHECKING:
    from patchsae.activations import CacheIndex
    from patchsae.data import ImageDataset
    from patchsae.models.clip import SplitCLIP
    from patchsae.training.origin import Origin


@dataclass(frozen=True)
class Training:
    """How `patchsae train` goes about it."""

    run: Path | None = None
    """directory of the whole experiment; the result is RUN/train. Only --dry-run does without it."""
    preset: str | None = None
    """"paper", "quick", another that is shipped, or a file NAME.toml of options. An option given beside it
    comes before it."""
    dry_run: bool = False
    """print what the training would take (steps, memory, disk, and time from a measurement of ten seconds)
    and end without writing anything."""
    cache: Path | None = None
    """train on what `patchsae cache` wrote to this folder, and not on images through the CLIP. --images,
    --model and --dtype, where given, must be those of the cache."""
    log: tuple[str, ...] = ()
    """"tensorboard" and "wandb", beside RUN/train/metrics.jsonl."""
    workers: int = 0
    """processes that decode images; 0 decodes in this one."""
    resume: bool = False
    """only go on; an error where there is no checkpoint to go on from."""
    overwrite: bool = False
    """start again even if RUN/train is finished or holds part of a training."""


@dataclass(frozen=True)
class Sweeping:
    """How `patchsae sweep` goes about it."""

    run: Path
    """directory of the experiment; the autoencoders are the stages of RUN/NAME-saes, table and plots RUN/NAME."""
    preset: str | None = None
    """as for `train`; its values may be lists where the options take several."""
    cache: Path | None = None
    """train on what `patchsae cache` wrote to this folder. The model and the images to judge on are those of the
    cache; --images, --model, --layer and --dtype, where given, must be."""
    log: tuple[str, ...] = ()
    """"tensorboard" and "wandb", beside metrics.jsonl of every autoencoder."""
    workers: int = 0
    """processes that decode images; 0 decodes in this one."""
    name: str = "sweep"
    """another name keeps several sweeps side by side."""
    overwrite: bool = False
    """train all of them again."""


def train(images: Images, model: Model, recipe: TrainConfig, how: Annotated[Training, PLAIN]) -> None:
    """Train a sparse autoencoder on the patch tokens of a frozen CLIP; the defaults are the released recipe.

    A training that was stopped goes on when the same command is given again. `torchrun --nproc-per-node N -m --
    patchsae train ...` trains in N processes.
    """
    from patchsae.cli import opening
    from patchsae.parallel import open_parallel
    from patchsae.training import checkpoint, trainer
    from patchsae.training.loggers import check_names
    from patchsae.training.origin import FromCache, FromImages

    check_names(how.log)
    if how.dry_run:
        _print_estimate(images, model, recipe, how.cache, how.workers)
        return
    if how.run is None:
        raise ValueError("--run is not given; expected the directory of the experiment")
    if how.resume and how.overwrite:
        raise ValueError("--resume goes on and --overwrite starts again: give one of them")
    stage = stage_of(how.run, opening.TRAIN, "train")
    if how.resume and not (checkpoint.exists(stage.path / checkpoint.FOLDER) or stage.finished):
        raise FileNotFoundError(f"{stage.path} holds no checkpoint to resume; leave --resume out to start")
    with open_parallel(recipe.latent_shards, opening.device(model)) as parallel:
        model = replace(model, device=str(parallel.device))
        if how.cache is None:
            clip, dataset, found = opening.clip_and_images(model, images, {}, default="shapes")
            origin: Origin = FromImages(clip, dataset, found, how.workers)
        else:
            _require_of_cache(how.cache, images, model)
            origin = FromCache(how.cache, model.device)
        trainer.train(origin, recipe, stage, overwrite=how.overwrite, log=how.log, parallel=parallel)
        if parallel.is_first:
            renew_report(how.run)


def sweep(how: Annotated[Sweeping, PLAIN], images: Images, tower: Tower, grid: Grid, options: SweepOptions) -> None:
    """Train a grid of autoencoders on one pass of activations; plot sparsity against quality and concept score.

    Every combination of --variant, --expansion, --layer and the variant's sparsity option (--l1, --k or --l0) is
    trained. A sweep that was stopped goes on when the same command is given again; a larger grid adds to it.
    `torchrun --nproc-per-node N -m -- patchsae sweep ...` shares the images among N processes.
    """
    from patchsae import report
    from patchsae.cli import opening
    from patchsae.disk.runs import Run
    from patchsae.experiments import Job, frontier
    from patchsae.experiments.options import StreamOptions
    from patchsae.parallel import open_parallel
    from patchsae.training.loggers import check_names
    from patchsae.training.sweep.groups import memory_budget
    from patchsae.training.sweep.train import train_grid

    check_names(how.log)
    with open_parallel(1, opening.device(tower.clip)) as parallel:
        model = replace(tower.clip, device=str(parallel.device))
        if how.cache is None:
            origin, clip, test, tested = _images_to_sweep(images, model, options, how.workers)
        else:
            origin, clip, test, tested = _cache_to_sweep(how.cache, images, model, options)
        memory = memory_budget(options.memory_gb, parallel)
        trials, saes = grid.trials(tower.blocks(clip.layers, origin.block)), Run(how.run / f"{how.name}-saes")
        members = train_grid(
            origin, trials, saes, memory=memory, overwrite=how.overwrite, log=how.log, parallel=parallel
        )
        if parallel.is_first:
            report.build(saes)
        job = Job(stage_of(how.run, how.name, "sweep"), tested, how.overwrite, parallel)
        judging = StreamOptions(workers=how.workers, on_bad_image=grid.on_bad_image)
        frontier.run(clip, members, test, job, judging, memory=memory)
        if parallel.is_first:
            renew_report(how.run)


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


def _require_of_cache(cache: Path, images: Images, model: Model) -> None:
    """Images and model that were named beside a cache have to be those that it was written from."""
    from patchsae.activations import CacheIndex
    from patchsae.cli import opening

    index = CacheIndex.load(cache)
    as_written = _as_written(cache, index, model)
    if replace(model, device="auto", dtype=Model().dtype) != Model():
        index.require(clip=opening.clip(as_written, index.model))
    if images != Images():
        index.require(dataset=opening.images(images, index.origin)[0])


def _as_written(cache: Path, index: CacheIndex, model: Model) -> Model:
    """The model in the arithmetic of a cache. ValueError where another one was named."""
    dtype = index.origin.get("dtype", model.dtype)
    if model.dtype not in (Model().dtype, dtype):
        raise ValueError(f"--dtype is {model.dtype}; {cache} was written in {dtype}")
    return replace(model, dtype=dtype)


class _Swept(NamedTuple):
    """What a sweep is trained and judged on."""

    origin: Origin
    clip: SplitCLIP
    """Whose residual stream the tokens are."""
    test: ImageDataset
    tested: dict[str, Any]
    """What to record of the images to judge on."""


def _images_to_sweep(images: Images, model: Model, options: SweepOptions, workers: int) -> _Swept:
    from patchsae.cli import opening
    from patchsae.training.origin import FromImages

    dataset, found = opening.images(images, {}, default="shapes")
    held_out = _held_out(images, options, found)  # before the model: it takes less time, and more can be wrong with it
    clip = opening.clip(model, {})
    opening.say_what_is_used(clip, dataset)
    return _Swept(FromImages(clip, dataset, found, workers), clip, *held_out)


def _cache_to_sweep(cache: Path, images: Images, model: Model, options: SweepOptions) -> _Swept:
    from patchsae.cli import opening
    from patchsae.training.origin import FromCache

    _require_of_cache(cache, images, Model(dtype=model.dtype))
    origin = FromCache(cache, model.device)
    index = origin.index
    held_out = _held_out(images, options, index.origin)
    clip = opening.clip(_as_written(cache, index, model), index.model)
    index.require(clip=clip)
    opening.say_what_is_used(clip, None, f"{index.images:,} images of {index.dataset} in {cache}")
    return _Swept(origin, clip, *held_out)


def _held_out(images: Images, options: SweepOptions, found: Mapping[str, Any]) -> tuple[ImageDataset, dict[str, Any]]:
    """The images that a sweep is judged on, and what to record of them. found: the same of those it is trained on."""
    from patchsae.cli import opening

    source = options.test_images or found.get("images")
    if source is None:
        raise ValueError("--test-images is not given, and the cache does not say which images it was written from")
    outside = images.outside or (options.test_images is None and bool(found.get("outside")))
    chosen = Images(source, options.test_split, options.test_limit, outside=outside)
    test, tested = opening.images(chosen, {}, option="--test-split")
    if all(tested.get(name) == found.get(name) for name in ("images", "split")):
        raise ValueError(f"--test-split is {options.test_split!r}, which is trained on; expected another split")
    return test, tested

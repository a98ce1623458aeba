"""`patchsae adapt`: train an adapter on few images, test it, leave everything in a stage."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from patchsae.adapt import checkpoint, result
from patchsae.adapt.evaluation import PartResult, evaluate
from patchsae.adapt.options import MAY_DIFFER, AdaptOptions
from patchsae.adapt.recipes import Recipe
from patchsae.adapt.section import adaptation_section
from patchsae.adapt.task import Task
from patchsae.adapt.trainer import train_adapter
from patchsae.adapters import AdaptedCLIP, adapter_class, create, official, save_adapter
from patchsae.adapters.files import FILE as ADAPTER
from patchsae.adapters.text import TextTower
from patchsae.data import ImageDataset
from patchsae.data.left_out import left_out
from patchsae.disk import checksums
from patchsae.disk.runs import Stage
from patchsae.experiments.stream.job import Job
from patchsae.models import prompts
from patchsae.models.clip import SplitCLIP
from patchsae.report import Section
from patchsae.words import percent

Outcome: TypeAlias = tuple[checkpoint.AdapterState, list[PartResult]]


def adapt(clip: SplitCLIP, task: Task, job: Job | Stage, options: AdaptOptions) -> list[result.Row]:
    """Train and test an adapter, or go on where a killed or interrupted run of the same settings stopped.

    Args:
        clip: nothing of it is changed.
        job: its stage receives ``adapter.safetensors``, for MaPLe also ``MultiModalPromptLearner/model.pth.tar-EPOCHS``
            and ``MultiModalPromptLearner/checkpoint`` in the official layout, ``metrics.jsonl``, ``accuracy.json``
            (what was counted), ``accuracy.csv``, ``classes.csv``, ``few_shot.csv`` (the images trained on),
            ``checkpoint.safetensors`` while training and a report section.

    Returns:
        The lines of accuracy.csv; those of the stage if it had finished already.

    Raises:
        NonFiniteStep, Interrupted, BadImage: as `train_adapter`.
        ValueError: a setting that the adapter or the CLIP does not have.
    """
    job = Job.of(job)
    adapted, recipe = build(clip, task, options)
    made_from = {
        "clip": clip.fingerprint,
        "layer": clip.layer,
        "training": task.training.fingerprint,
        "parts": [f"{part.name} {part.dataset.fingerprint}" for part in task.parts],
    }
    told = {**clip.metadata, **job.settings, **dataclasses.asdict(options)}
    config = {**told, "recipe": recipe, "made_from": made_from}

    def compute() -> Outcome:
        _write_few(job.stage, task.training)
        state = train_adapter(adapted, task.training, recipe, options, job.stage)
        _save(job.stage, adapted, recipe)
        return state, _evaluate(job.stage, adapted, task, options)

    def write(stage: Stage, done: Outcome) -> Section:
        state, parts = done
        result.write_tables(stage, parts, options.setting)
        by_seed = result.over_seeds(stage, options.setting, parts)
        section = adaptation_section(stage, adapted, task, recipe, options, state, parts, by_seed)
        _say(stage.name, done, task, options)
        return section

    job.make(config, compute, write, device=clip.device, may_differ=MAY_DIFFER, spent=checkpoint.FILE)
    return result.rows(result.load_parts(job.stage), options.setting)


def build(clip: SplitCLIP, task: Task, options: AdaptOptions) -> tuple[AdaptedCLIP, Recipe]:
    """The untrained adapter of the task, and how it will be trained."""
    classnames = task.training.classnames or []
    default = adapter_class(options.adapter).default_config(clip)
    recipe = options.recipe(len(classnames), getattr(default, "depth", clip.layers))
    values: dict[str, Any] = dict(recipe.adapter)
    if hasattr(default, "templates"):
        values["templates"] = tuple(templates_of(task.training, options))
    adapted = create(options.adapter, clip, classnames, dataclasses.replace(default, **values), options.seed)
    adapted.text_budget_mb = options.text_budget_mb
    if recipe.start_words is not None:
        _start_from_words(adapted, recipe.start_words)
    return adapted, recipe


def templates_of(dataset: ImageDataset, options: AdaptOptions) -> list[str]:
    """The prompts of a dataset's classes: those asked for, or the one of its adaptation experiments."""
    return prompts.resolve(options.templates) if options.templates else prompts.templates_for(dataset.name)


@torch.no_grad()
def _start_from_words(adapted: AdaptedCLIP, words: str) -> None:
    context = adapted.trainable()["ctx"]
    ids = adapted.tokenizer([words])[0, 1 : 1 + len(context)]
    context.copy_(TextTower(adapted.clip).embedding_of(ids))


def _say(name: str, done: Outcome, task: Task, options: AdaptOptions) -> None:
    state, parts = done
    for line in left_out(state.bad, len(task.training)):
        print(line, file=sys.stderr)
    for row in result.rows(parts, options.setting):
        print(f"{name}: {row.part}: {percent(row.accuracy, 2)} (CLIP {percent(row.clip, 2)})")


def _write_few(stage: Stage, few: ImageDataset) -> None:
    names = few.classnames or []
    labels = few.labels.tolist()
    columns: dict[str, Sequence[Any]] = {
        "image": [few.ids(i) for i in range(len(few))],
        "label": labels,
        "class": [names[label] for label in labels],
    }
    stage.write_table("few_shot.csv", columns)


def _save(stage: Stage, adapted: AdaptedCLIP, recipe: Recipe) -> None:
    save_adapter(adapted, stage.own(ADAPTER))
    if adapted.kind == "maple":
        checksums.keep(stage.folder(official.FOLDER))
        official.write(adapted, stage.path, recipe.epochs or 0)


def _evaluate(stage: Stage, adapted: AdaptedCLIP, task: Task, options: AdaptOptions) -> list[PartResult]:
    """Every part that the stage does not hold yet."""
    done = result.load_parts(stage)
    for part in task.parts[len(done) :]:
        done.append(evaluate(adapted, part, templates_of(part.dataset, options), options, stage))
        result.save_parts(stage, done)
    return done

"""The adaptation's part of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchsae.adapt.checkpoint import AdapterState
from patchsae.adapt.evaluation import PartResult
from patchsae.adapt.options import AdaptOptions
from patchsae.adapt.recipes import Recipe
from patchsae.adapt.result import Row, rows, summary
from patchsae.adapt.task import Task
from patchsae.adapters import AdaptedCLIP
from patchsae.disk.runs import Stage
from patchsae.experiments.shown import SHOWN_CLASSES
from patchsae.report import Section
from patchsae.report.plots import class_dots, training_curves
from patchsae.words import counted, percent, signed

PANELS = (("Loss", ("loss",)), ("Accuracy on the batches", ("accuracy",)), ("Learning rate", ("lr",)))
_KINDS = {
    "maple": "MaPLe",
    "coop": "CoOp",
    "vpt": "VPT-deep",
    "lora": "LoRA",
    "linear": "Linear probe",
}
_PLACES = {
    "maple": "prompts in both towers",
    "coop": "prompts in the text tower",
    "vpt": "prompts in the image tower",
    "lora": "updates of the image tower's attention",
    "linear": "in the place of the texts",
}


def adaptation_section(
    stage: Stage,
    adapted: AdaptedCLIP,
    task: Task,
    recipe: Recipe,
    options: AdaptOptions,
    state: AdapterState,
    parts: Sequence[PartResult],
    by_seed: Mapping[int, Sequence[Row]],
) -> Section:
    """What was trained on what, how the loss went, and what the adapter classifies better or worse than its CLIP."""
    classes, learned = len(adapted.classnames), sum(p.numel() for p in adapted.trainable().values())
    length = counted(recipe.epochs, "epoch") if recipe.epochs else counted(recipe.steps or 0, "step")
    shots = counted(options.shots, "shot")
    section = Section(
        f"Adaptation: {_KINDS[adapted.kind]}, {shots}, seed {options.seed}",
        f"{_KINDS[adapted.kind]} on {adapted.name} ({_PLACES[adapted.kind]}), {counted(learned, 'learned value')}, "
        f"trained for {length} on {counted(len(task.training), 'image')} of {task.training.name}: {options.shots} of "
        f"each of {counted(classes, 'class', 'classes')} ({options.setting}).",
    )
    table = rows(parts, options.setting)
    section.facts({f"accuracy, {row.part}": percent(row.accuracy) for row in table})
    section.table(
        {
            "part": [row.part for row in table],
            "classes": [row.classes for row in table],
            "images": [row.images for row in table],
            "adapted": [percent(row.accuracy, 2) for row in table],
            "CLIP": [percent(row.clip, 2) for row in table],
            "difference": [signed(100 * (row.accuracy - row.clip), 2) for row in table],
        },
        "Share of the test images that are classified correctly, by the adapter and by its CLIP without it; the "
        "difference in percentage points. All classes: classes.csv.",
    )
    if len(by_seed) > 1:
        seeds = ", ".join(map(str, by_seed))
        section.table(summary(by_seed), f"Over the seeds {seeds}: this stage and those that differ only in the seed.")
    metrics = stage.metrics()
    if metrics:
        caption = f"Training. Every point is the mean over the steps since the last one ({options.log_every})."
        section.figure(training_curves(metrics, panels=PANELS), caption)
    _classes(section, parts)
    _left_out(section, state, parts)
    return section


def _classes(section: Section, parts: Sequence[PartResult]) -> None:
    for part in parts:
        seen = [label for label, images in enumerate(part.images) if images]
        shown = seen[:SHOWN_CLASSES]
        if not shown:
            continue
        series = {
            "CLIP": [part.clip_correct[label] / part.images[label] for label in shown],
            "adapted": [part.correct[label] / part.images[label] for label in shown],
        }
        rest = "" if len(shown) == len(seen) else f" The first {len(shown)} of {len(seen)} classes."
        figure = class_dots([part.classnames[label] for label in shown], series, "accuracy")
        section.figure(figure, f"Accuracy by class: {part.name}.{rest}")


def _left_out(section: Section, state: AdapterState, parts: Sequence[PartResult]) -> None:
    lines = [("training", record.id, record.reason) for record in state.bad]
    lines += [(part.name, str(record["id"]), str(record["reason"])) for part in parts for record in part.bad]
    if lines:
        section.text(f"{counted(len(lines), 'image')} could not be decoded and left out:")
        where, ids, reasons = zip(*lines, strict=True)
        section.table({"part": where, "image": ids, "reason": reasons}, "Images left out.")

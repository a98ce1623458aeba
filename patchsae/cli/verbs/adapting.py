"""Verbs that change a CLIP: adapt, tinyclip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from patchsae.adapt.options import AdaptOptions
from patchsae.cli.choices import FewImages, Images, Model
from patchsae.cli.verbs.shared import renew_report, require_prompts, stage_of
from patchsae.tinyclip.config import TinyClipConfig


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
    from patchsae.experiments import Job

    options.require_targets(images.targets)
    require_prompts(options.templates)
    origin = opening.trained_on(Run(run))
    train, test, targets, found = opening.few_images(images, origin)
    options = opening.as_trained(options, found)
    task = make_task(options, train, test, targets)
    clip = opening.clip(model, origin)
    opening.say_what_is_used(clip, task.training)
    stage = stage_of(run, name or f"adapt-{options.adapter}-seed{options.seed}", "adapt")
    train_and_test(clip, task, Job(stage, found | {"dtype": model.dtype}, overwrite), options)
    renew_report(run)


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

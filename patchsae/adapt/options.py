"""What `patchsae adapt` can be told. Imports no torch, so that the command line can show it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from patchsae.adapt.recipes import Augment, Kind, Recipe, Setting, published
from patchsae.errors import require

Precision = Literal["fp32", "amp"]

MAY_DIFFER = ("workers", "log_every", "checkpoint_steps", "save_minutes", "on_bad_image")
"""Settings that do not decide the result, so that a resumed run may change them (`Stage.begin`)."""


@dataclass(frozen=True)
class AdaptOptions:
    """`patchsae adapt`: train an adapter on few images per class.

    What is left out of the hyper-parameters comes from the published recipe of the adapter (`recipes.published`).
    """

    adapter: Kind = "maple"
    """maple: prompts in both towers; coop: prompts in the text tower; vpt: deep prompts in the image tower; lora:
    low-rank updates of the image tower's attention; linear: a linear classifier on the image embedding."""
    setting: Setting = "base-to-novel"
    """few-shot: train and test on all classes. base-to-novel: train on the first half of the classes, test on both
    halves. cross-dataset: train on all classes, test here and on the --targets."""
    shots: int = 16
    """Images per class, drawn as CoOp draws them; 1, 2, 4, 8 and 16 are usual."""
    seed: int = 1
    """Seed of the draw, of the adapter's start, of the order and of the augmentation; 1, 2 and 3 are usual."""
    preset: Setting | None = None
    """The setting whose published hyper-parameters are used; left out: --setting."""
    epochs: int | None = None
    """Passes over the few images; the learning rate changes between passes."""
    steps: int | None = None
    """Instead of --epochs: optimiser steps in all; the learning rate changes at every step."""
    lr: float | None = None
    """Peak learning rate."""
    batch_size: int | None = None
    """Images in a step."""
    augment: Augment | None = None
    """crop-flip: random resized crop and horizontal flip, as CoOp and MaPLe train; none: the images as they are."""
    n_ctx: int | None = None
    """maple, coop, vpt: prompt tokens."""
    depth: int | None = None
    """maple, vpt: blocks that get prompts of their own."""
    rank: int | None = None
    """lora: rank of the updates."""
    templates: tuple[str, ...] = ()
    """Prompts with "{}" for the class name for the frozen CLIP and for adapters without text prompts, or names as for
    `patchsae mask`. Empty means the one of the dataset's adaptation experiments, by its name."""
    precision: Precision = "fp32"
    """amp: matrix products of the towers in bfloat16 (autocast); the adapter and its optimiser stay float32."""
    text_budget_mb: int = 2048
    """Bound on what the text tower keeps for the backward pass, in MB; classes beyond it are computed in pieces."""
    test_batch_size: int = 100
    """Images that are tested together."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one. The result does not depend on it."""
    on_bad_image: Literal["stop", "skip"] | None = None
    """`stop` names the first image that cannot be decoded; `skip` leaves such images out, counts and reports them. Left
    out: as the training of RUN/train did with these images, else `stop`."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl; the first and the last step are always written."""
    checkpoint_steps: int = 500
    """Steps between two checkpoints."""
    save_minutes: float = 2.0
    """Minutes after which the state is saved even so, so that a killed run loses no more than that."""

    def __post_init__(self) -> None:
        for name, kinds in (("adapter", Kind), ("setting", Setting), ("precision", Precision)):
            _require_one_of(name, getattr(self, name), get_args(kinds))
        for name, kinds in (("preset", Setting), ("augment", Augment)):
            if getattr(self, name) is not None:
                _require_one_of(name, getattr(self, name), get_args(kinds))
        if self.on_bad_image is not None:
            _require_one_of("on_bad_image", self.on_bad_image, ("stop", "skip"))
        for name in ("shots", "text_budget_mb", "test_batch_size", "log_every", "checkpoint_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        for name in ("epochs", "steps", "batch_size", "n_ctx", "depth", "rank"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "an integer of at least 1")
        for name in ("seed", "workers", "save_minutes"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number of at least 0")
        require(self.lr is None or self.lr > 0, "lr", self.lr, "a number above 0")
        require(self.epochs is None or self.steps is None, "steps", self.steps, "either epochs or steps, not both")
        if self.adapter == "linear" and self.setting != "few-shot":
            raise ValueError(
                f"setting is {self.setting!r}, but a linear probe knows only the classes it was trained on; "
                "expected --setting few-shot with --adapter linear"
            )
        self.recipe(classes=1, deepest=1000)  # says now what no model and no dataset would change

    def recipe(self, classes: int, deepest: int) -> Recipe:
        """The published recipe with what the user changed.

        classes: how many are trained on. deepest: the most blocks that can have prompts; a published depth beyond it
        becomes it, for the published numbers are those of 12 blocks.

        Raises ValueError for a setting that the adapter does not have.
        """
        base = published(self.adapter, self.preset or self.setting, self.shots, classes)
        adapter = dict(base.adapter)
        if "depth" in adapter:
            adapter["depth"] = min(int(adapter["depth"]), deepest)
        for name in ("n_ctx", "depth", "rank"):
            value = getattr(self, name)
            if value is not None:
                require(name in adapter, name, value, f"nothing: {self.adapter} has no such setting")
                adapter[name] = value
        recipe = replace(base, adapter=adapter)
        if recipe.start_words and adapter["n_ctx"] != base.adapter["n_ctx"]:
            recipe = replace(recipe, start_words=None)  # the words are four tokens; another number starts at random
        if self.epochs is not None or self.steps is not None:
            recipe = recipe.lasting(self.epochs, self.steps)
        given = {name: getattr(self, name) for name in ("lr", "batch_size", "augment")}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})

    def require_targets(self, targets: Sequence[str]) -> None:
        """ValueError for other datasets that the setting has no use for, or where it has none to test on."""
        across = self.setting == "cross-dataset"
        if across != bool(targets):
            expected = "at least one other dataset" if across else "none, except for --setting cross-dataset"
            raise ValueError(f"targets is {list(targets)}; expected {expected}")


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, name, value, f"one of {', '.join(choices)}")

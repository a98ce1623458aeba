"""The published hyper-parameters of every adapter. Imports no torch.

Sources:

- MaPLe: Khattak et al., CVPR 2023, and the configurations of its code: `vit_b16_c2_ep5_batch4_2ctx` (base-to-novel,
  few-shot) and `vit_b16_c2_ep5_batch4_2ctx_cross_datasets`.
- CoOp: Zhou et al., IJCV 2022: 16 random tokens, 50 epochs for 1 shot, 100 for 2 and 4, 200 for 8 and 16, 50 on
  ImageNet. Where it is tested on unseen classes (CoCoOp: Zhou et al., CVPR 2022), configurations `vit_b16_*ctxv1`: 4
  tokens that start as "a photo of a".
- VPT-deep: Jia et al., ECCV 2022, as MaPLe's code trains it on CLIP: `VPT/vit_b16_c2_ep5_batch4_4`, 8 tokens in 12
  blocks.
- LoRA: CLIP-LoRA, Zanella and Ben Ayed, CVPRW 2024, with its option "vision": rank 2 on queries, keys and values, 500
  steps per shot. Its dropout of .25 on the inputs of the updates is left out.
- Linear probe: Lin et al., CVPR 2023 (cross-modal adaptation), which fixes 12,800 steps, batch 8 and AdamW, and
  searches lr in {1e-3, 1e-4}, weight decay in {0, .01, .0001} on a validation set; here the larger lr and decay .01.

All with SGD train through Dassl: momentum .9, weight decay 5e-4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from patchsae.errors import require

Kind = Literal["maple", "coop", "vpt", "lora", "linear"]
Setting = Literal["few-shot", "base-to-novel", "cross-dataset"]
Augment = Literal["crop-flip", "none"]
IMAGENET_CLASSES = 1000
WORDS = "a photo of a"


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained. Exactly one of `epochs` and `steps` is given, and is the schedule's unit of time."""

    optimiser: Literal["sgd", "adamw"]
    lr: float
    weight_decay: float
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    warm_up: int = 1
    """Epochs, or steps, before the peak learning rate; their rate is `warm_up_lr`, or rises from it linearly."""
    warm_up_kind: Literal["constant", "linear"] = "constant"
    warm_up_lr: float = 1e-5
    final_lr: float = 0.0
    """What the cosine falls towards."""
    augment: Augment = "crop-flip"
    adapter: Mapping[str, int | float] = field(default_factory=dict)
    """Settings of the adapter itself, by their names in its configuration."""
    start_words: str | None = None
    """Words whose token embeddings CoOp's context starts from; None starts at random. (MaPLe's always starts so.)"""

    def __post_init__(self) -> None:
        length = self.epochs or self.steps or 0
        require((self.epochs is None) != (self.steps is None), "epochs", self.epochs, "either epochs or steps")
        unit = "steps" if self.epochs is None else "epochs"
        require(length > self.warm_up, unit, length, f"more than the warm-up, which takes {self.warm_up}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of optimiser step ``step``, from 0, as Dassl's warm-up schedulers around PyTorch's cosine
        give it.

        With U epochs (or steps, whichever the recipe counts) of which W are warm-up, unit u has the rate ``warm_up_lr``
        (constant), or ``lr * u / W`` and ``warm_up_lr`` at u = 0 (linear), for u < W, and
        ``final_lr + (lr - final_lr) * (1 + cos(pi * (u - W) / U)) / 2`` after that: the cosine is counted anew after
        the warm-up but runs over U, so that it ends W units early.
        """
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more")
        total = self.epochs or self.steps or 1
        unit = step if self.epochs is None else step // steps_per_epoch
        if unit < self.warm_up:
            if self.warm_up_kind == "constant" or unit == 0:
                return self.warm_up_lr
            return self.lr * unit / self.warm_up
        share = (1 + math.cos(math.pi * (unit - self.warm_up) / total)) / 2
        return self.final_lr + (self.lr - self.final_lr) * share

    def lasting(self, epochs: int | None = None, steps: int | None = None) -> Recipe:
        """The recipe over another time; a warm-up counted in the other unit does not carry over."""
        same_unit = (self.epochs is None) == (epochs is None)
        return replace(self, epochs=epochs, steps=steps, warm_up=self.warm_up if same_unit else 0)


def published(kind: Kind, setting: Setting, shots: int, classes: int) -> Recipe:
    """The published recipe of an adapter on ``classes`` classes of ``shots`` images."""
    if kind == "maple":
        across = setting == "cross-dataset"
        lr, epochs, depth = (0.0026, 2, 3) if across else (0.0035, 5, 9)
        return _dassl(lr, epochs, batch_size=4, adapter={"n_ctx": 2, "depth": depth})
    if kind == "coop":
        n_ctx, words = (16, None) if setting == "few-shot" else (len(WORDS.split()), WORDS)
        recipe = _dassl(0.002, _coop_epochs(shots, classes), batch_size=32, adapter={"n_ctx": n_ctx})
        return replace(recipe, start_words=words)
    if kind == "vpt":
        return _dassl(0.0025, 5, batch_size=4, adapter={"n_ctx": 8, "depth": 12})
    if kind == "lora":
        lora: dict[str, int | float] = {"rank": 2, "alpha": 1.0}
        return Recipe("adamw", 2e-4, 1e-2, 32, steps=500 * shots, warm_up=0, final_lr=1e-6, adapter=lora)
    return Recipe("adamw", 1e-3, 1e-2, 8, steps=12_800, warm_up=50, warm_up_kind="linear", augment="none")


def _dassl(lr: float, epochs: int, batch_size: int, adapter: Mapping[str, int]) -> Recipe:
    return Recipe("sgd", lr, 5e-4, batch_size, epochs=epochs, adapter=adapter)


def _coop_epochs(shots: int, classes: int) -> int:
    if shots == 1 or classes >= IMAGENET_CLASSES:
        return 50
    return 100 if shots <= 4 else 200

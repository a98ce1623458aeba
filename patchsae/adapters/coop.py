"""CoOp: learned context vectors in place of the words of a template (Zhou et al., IJCV 2022).

One context for all classes, the class name at the end: ``[SOS][v1]..[vn] {class}.``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from patchsae.adapters.base import AdaptedCLIP, check_range
from patchsae.adapters.text import TextTower, class_features, class_prompts
from patchsae.models.clip import SplitCLIP
from patchsae.models.given import outside_inference_mode
from patchsae.models.prompts import check_prompts

SPREAD = 0.02  # standard deviation of the first values


@dataclass(frozen=True)
class CoOpConfig:
    """Settings of CoOp."""

    n_ctx: int = 16
    """Learned tokens in front of a class name."""


class CoOp(AdaptedCLIP):
    """See `AdaptedCLIP`. Learned: ``ctx``, ``[n_ctx, W]`` with W the width of the text tower."""

    kind = "coop"
    config_class = CoOpConfig
    config: CoOpConfig

    @classmethod
    def shapes(cls, clip: SplitCLIP, config: CoOpConfig, classes: int) -> dict[str, tuple[int, ...]]:
        tower = TextTower(clip)
        check_range("n_ctx", config.n_ctx, 0, tower.context_length - 3, "it shares the text tower's context with names")
        return {"ctx": (config.n_ctx, tower.width)}

    @classmethod
    def initial(
        cls, clip: SplitCLIP, config: CoOpConfig, classes: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        (shape,) = cls.shapes(clip, config, classes).values()
        return {"ctx": SPREAD * torch.randn(shape, generator=generator)}

    def text_classifier(
        self,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        renormalise: bool = True,
    ) -> Tensor:
        ids = self._class_ids if classnames is None else self._ids(classnames)
        return class_features(self._text_tower, ids, [self._learned["ctx"]], self.text_budget_mb)

    @cached_property
    def _text_tower(self) -> TextTower:
        return TextTower(self.clip)

    @cached_property
    @outside_inference_mode
    def _class_ids(self) -> Tensor:
        return self._ids(self.classnames)

    def _ids(self, classnames: Sequence[str]) -> Tensor:
        check_prompts(classnames, self.templates)
        return class_prompts(self.clip, self._text_tower, classnames, "", self.config.n_ctx)


ADAPTER = CoOp

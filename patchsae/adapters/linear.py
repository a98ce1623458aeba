"""A linear probe on CLIP's unit-norm embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.adapters.base import AdaptedCLIP
from patchsae.models.clip import SplitCLIP


@dataclass(frozen=True)
class LinearConfig:
    """A linear probe has no settings."""


class LinearProbe(AdaptedCLIP):
    """See `AdaptedCLIP`. Learned: ``weight``, ``[C, E]``, zero before training.

    It takes the place of the text classifier, scaled like one and without a bias, so that whatever scores embeddings
    against `text_classifier` scores them as this probe does.
    """

    kind = "linear"
    config_class = LinearConfig

    @classmethod
    def shapes(cls, clip: SplitCLIP, config: LinearConfig, classes: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (classes, clip.embed_dim)}

    @classmethod
    def initial(
        cls, clip: SplitCLIP, config: LinearConfig, classes: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"weight": torch.zeros(classes, clip.embed_dim)}

    def text_classifier(
        self,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        renormalise: bool = True,
    ) -> Tensor:
        """The head ``[C, E]``, whatever the templates.

        Raises:
            ValueError: other classes than its own.
        """
        if classnames is not None:
            self._require_own(classnames)
        return self._learned["weight"]

    def for_classes(self, classnames: Sequence[str]) -> AdaptedCLIP:
        self._require_own(classnames)
        return super().for_classes(classnames)

    def _require_own(self, classnames: Sequence[str]) -> None:
        if tuple(classnames) != self.classnames:
            raise ValueError(
                f"a linear probe knows the {len(self.classnames)} classes that it was trained on and no others: its "
                f"head has a row for each, and none can be made from a name; {len(classnames)} other names were given"
            )


ADAPTER = LinearProbe

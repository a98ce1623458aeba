"""Orderings of the latents, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patchsae.disk.runs import Stage
from patchsae.experiments.stored import require_range, require_shapes

_SHAPES = {"class": "int32 C S", "dataset": "int32 S", "random": "int32 S"}


@dataclass(frozen=True, eq=False)
class Rankings:
    """Orderings of S latents, and the classes they are about."""

    classnames: tuple[str, ...]
    """Name of every label; two classes may share a name."""
    ranks: dict[str, Tensor]
    """"class" int32 [C, S], "dataset" int32 [S], "random" int32 [S]: the position of every latent, 0 is first."""
    made_from: dict[str, Any]
    """CLIP, autoencoder and images of the extraction (``Extraction.made_from``)."""

    def save(self, stage: Stage) -> None:
        """Write ``rankings.safetensors`` and ``classes.json``."""
        stage.save_tensors("rankings", self.ranks)
        stage.save_json("classes", {"classnames": list(self.classnames), "made_from": self.made_from})

    @staticmethod
    def load(stage: Stage) -> Rankings:
        """Read what :meth:`save` left in the stage."""
        with stage.understanding():
            about, ranks = stage.load_json("classes"), stage.load_tensors("rankings")
            classnames = tuple(about["classnames"])
            require_shapes(ranks, _SHAPES, C=len(classnames))
            for name in _SHAPES:
                require_range(name, ranks[name], 0, ranks["dataset"].numel() - 1)
            return Rankings(classnames, ranks, about.get("made_from", {}))

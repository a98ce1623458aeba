"""A CLIP small enough to ship and to train in minutes, from shapes-world captions or class names.

Names load on first use, so that reading the configuration (`patchsae.tinyclip.config`) needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchsae import lazy

if TYPE_CHECKING:
    from patchsae.tinyclip.config import TinyClipConfig as TinyClipConfig
    from patchsae.tinyclip.train import TrainingRecord as TrainingRecord
    from patchsae.tinyclip.train import train_clip as train_clip
    from patchsae.tinyclip.zero_shot import evaluate_zero_shot as evaluate_zero_shot
    from patchsae.tinyclip.zero_shot import measure_shapes as measure_shapes

_HOMES = {
    "TinyClipConfig": "config",
    "TrainingRecord": "train",
    "train_clip": "train",
    "evaluate_zero_shot": "zero_shot",
    "measure_shapes": "zero_shot",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy.names(__name__, _HOMES)

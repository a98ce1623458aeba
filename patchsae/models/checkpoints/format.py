"""What a checkpoint format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from patchsae.models.sae_config import SAEConfig


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file says of a SAE.

    Attributes:
        file: where the weights lie, for messages.
        config: checked by itself.
        tensors: by name, on the CPU; whether they fit the configuration is not known yet.
    """

    file: Path
    config: SAEConfig
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Format:
    """One way in which a SAE lies on disk.

    Attributes:
        name: short name, used in messages.
        layout: one line that says which files make it up.
        matches: whether a path looks like this format; cheap, and never runs anything from the file.
        read: configuration and tensors.
    """

    name: str
    layout: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Checkpoint]

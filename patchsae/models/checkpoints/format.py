"""What a checkpoint format is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file says of a SAE.

    Attributes:
        file: where the weights lie, for messages.
        config: checked by itself. Its metadata say what was understood, see `understood.line`.
        tensors: by name, on the CPU; whether they fit the configuration is not known yet.
        unsaid: what matters and the file does not say -> what was taken for it, and why: "b_dec" (whether it is
            subtracted from the input).
    """

    file: Path
    config: SAEConfig
    tensors: Mapping[str, Tensor]
    unsaid: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One way in which a SAE lies on disk.

    Attributes:
        name: short name, used in messages.
        layout: one line that says which files and tensors make it up.
        matches: whether what was opened is of this format, by its contents; exactly one format says so.
        read: configuration and tensors. The second argument answers whether b_dec is subtracted from the input, where
            the file leaves that open; None: nobody said.
        stand_ins: dotted names that a pickle of this format asks for besides tensors -> what to build in their place.
    """

    name: str
    layout: str
    matches: Callable[[Opened], bool]
    read: Callable[[Opened, bool | None], Checkpoint]
    stand_ins: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

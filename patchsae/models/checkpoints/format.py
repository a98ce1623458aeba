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
            subtracted from the input), "activation" (which latents a token keeps), "input" (mean and deviation of the
            tokens that it was trained on); or what no argument decides.
        format: the name of the one that it has; a reader need not say it.
    """

    file: Path
    config: SAEConfig
    tensors: Mapping[str, Tensor]
    unsaid: Mapping[str, str] = field(default_factory=dict)
    format: str = ""


@dataclass(frozen=True)
class Answers:
    """What whoever loads a file says of it; a reader asks where the file leaves it open, and names that in `unsaid`.

    Attributes:
        subtract_b_dec: whether the encoder sees x - b_dec; answers "b_dec".
        k: a token keeps its k largest positive latents; answers "activation".
        threshold: it keeps those of at least this; answers "activation".
    """

    subtract_b_dec: bool | None = None
    k: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.threshold is not None:
            raise ValueError(f"k={self.k} and threshold={self.threshold}; expected one of them: they choose latents")

    @property
    def given(self) -> dict[str, tuple[str, bool | int | float]]:
        """Name of the argument -> what it answers, and its value; of those that are given."""
        all_ = {
            "subtract_b_dec": ("b_dec", self.subtract_b_dec),
            "k": ("activation", self.k),
            "threshold": ("activation", self.threshold),
        }
        return {name: (key, value) for name, (key, value) in all_.items() if value is not None}


@dataclass(frozen=True)
class Format:
    """One way in which a SAE lies on disk.

    Attributes:
        name: short name, used in messages and by `patchsae sae convert`.
        matches: whether what was opened is of this format, by its contents; exactly one format says so.
        read: configuration and tensors.
        write: puts a SAE of ours, its tensors on the CPU, into an existing directory; None where a format is only read.
            Raises ValueError for one that the format cannot hold, with the reason.
        stand_ins: dotted names that a pickle of this format asks for besides tensors -> what to build in their place.
        packages: beginnings of dotted names whose classes become inert ones of that name.
    """

    name: str
    matches: Callable[[Opened], bool]
    read: Callable[[Opened, Answers], Checkpoint]
    write: Callable[[SAEConfig, Mapping[str, Tensor], Path], None] | None = None
    stand_ins: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

"""What a checkpoint format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from patchsae.models.sae import SparseAutoencoder


@dataclass(frozen=True)
class Format:
    """One way in which a SAE lies on disk.

    Attributes:
        name: short name, used in messages.
        layout: one line that says which files make it up.
        matches: whether a path looks like this format; cheap, and never runs anything from the file.
        load: read it, on the CPU.
    """

    name: str
    layout: str
    matches: Callable[[Path], bool]
    load: Callable[[Path], SparseAutoencoder]

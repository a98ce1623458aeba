"""How `patchsae sweep` trains and judges a grid. Imports no torch, so that the command line can show it at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SweepOptions:
    """How a grid is trained and judged."""

    memory_gb: float | None = None
    """Memory that the sweep may take, in each of its processes; a grid that needs more is cut into groups, each with a
    pass of its own. Left out: four fifths of what is free."""
    test_images: str | None = None
    """Source of the images that the autoencoders are judged on; left out: that of --images."""
    test_split: str = "test"
    """Split of it: not the one that is trained on."""
    test_limit: int | None = 1000
    """At most this many of them, drawn evenly over the classes."""

    def __post_init__(self) -> None:
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"memory_gb is {self.memory_gb}; expected a number above 0")
        if self.test_limit is not None and self.test_limit < 1:
            raise ValueError(f"test_limit is {self.test_limit}; expected an integer of at least 1")

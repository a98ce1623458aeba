"""The interpreter's programs in another order: a GPU promises none, and no result may depend on it.

``PROGRAM_ORDER=SEED`` in the environment shuffles the programs of every launch of a run of tests/triton; ``make
shuffled`` does it with three seeds.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from triton.runtime.interpreter import interpreter_builder as builder

VARIABLE = "PROGRAM_ORDER"


def seed_of_run() -> int | None:
    """The seed in the environment, or None.

    Raises:
        ValueError: it is not a number.
    """
    text = os.environ.get(VARIABLE, "")
    if text and not text.isdecimal():
        raise ValueError(f"{VARIABLE} is {text!r}; expected a number, the seed of the order")
    return int(text) if text else None


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """Within: the programs of every launch run in the order of `permutation`."""
    before = builder.set_grid_idx

    def set_grid_idx(x: int, y: int, z: int) -> None:
        _, down, deep = grid = tuple(builder.grid_dim)
        program = permutation(seed, grid)[(x * down + y) * deep + z]
        type(builder).set_grid_idx(builder, program // (down * deep), program // deep % down, program % deep)

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_idx = before


@lru_cache(maxsize=64)
def permutation(seed: int, grid: tuple[int, ...]) -> list[int]:
    """In which order the programs of a grid run, numbered along its last axis first: another for each seed and grid."""
    programs = list(range(math.prod(grid)))
    random.Random(f"{seed} {grid}").shuffle(programs)
    return programs

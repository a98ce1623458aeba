"""One way of calling encode: the activation, its k, the precision."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench.inputs import Problem


class Encode(NamedTuple):
    """``activation`` with ``k`` where it takes one, in one ``precision``."""

    activation: str
    precision: str
    k: int | None = None

    @property
    def name(self) -> str:
        return f"{self.activation}{'' if self.k is None else f' {self.k}'}, {self.precision}"

    def arguments(self, problem: Problem) -> dict[str, Any]:
        """Keywords of `pk.encode` and of the ops that encode inside."""
        threshold = problem.threshold if self.activation == "jumprelu" else None
        return {"activation": self.activation, "k": self.k, "threshold": threshold, "precision": self.precision}

    def run(self, problem: Problem, x: Tensor | None = None) -> pk.SparseLatents:
        """Encode ``x``, or the first input set."""
        return pk.encode(problem.x if x is None else x, problem.weights, **self.arguments(problem))

    def reconstruct(self, problem: Problem, W_dec: Tensor, x: Tensor | None = None) -> Any:
        """Fused encode, activation and decode with the loss terms."""
        return pk.reconstruct(problem.x if x is None else x, problem.weights, W_dec, **self.arguments(problem))

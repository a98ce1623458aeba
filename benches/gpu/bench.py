"""What the stages share: the size, the device, the clock of the running stage, and the inputs, made once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benches.gpu.inputs import residual_problem
from benches.gpu.sizes import Scale
from patchsae.bench.inputs import Problem
from patchsae.bench.timing import Pace


def multiply_in_float32() -> None:
    """Products of float32 in float32: the baselines, and what a compiler makes of them."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@dataclass(eq=False)
class Bench:
    """One run of the worker.

    Attributes:
        out: where the stages write.
        end: when the running stage must be over, on the clock of ``time.time``.
    """

    size: Scale
    device: torch.device
    out: Path
    end: float = float("inf")

    @cached_property
    def problem(self) -> Problem:
        return residual_problem(self.size, self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def backend(self) -> str:
        """Of torch.compile; on the CPU the graph is what is tested, not the code that a C++ compiler makes of it."""
        return "inductor" if self.on_gpu else "aot_eager"

    @property
    def left(self) -> float:
        """Seconds until the running stage must be over."""
        return self.end - time.time()

    @property
    def pace(self) -> Pace:
        """For one line of a table."""
        return Pace(seconds=1.5, min_rounds=7, max_rounds=60, warm_ups=3) if self.on_gpu else Pace(0.0, 1, 1, 0)

    def release(self) -> None:
        """Give back what lines held for their opponents."""
        if "problem" in self.__dict__:
            self.problem.release()
        if self.on_gpu:
            torch.cuda.empty_cache()

"""The limit of everything that multiplies tokens with all latents: the machine's own rate."""

from __future__ import annotations

from typing import Any

import torch

from patchsae.bench.case import Side, floor
from patchsae.bench.inputs import Problem
from patchsae_kernels.parts import spend


def product_floor() -> Side:
    """One product x W_enc ``[N, S]`` in the narrowest type: on a CPU on registers alone, on a GPU by cuBLAS."""
    return floor("one low-precision product at the machine's rate", _product)


def _product(p: Problem) -> Any:
    if p.device.type == "cpu":
        return spend(2 * len(p.x) * p.size.d_in * p.size.d_sae)
    return torch.mm(p.x.bfloat16(), p.W_enc.bfloat16())

"""The limit of everything that multiplies tokens with all latents: the machine's own rate."""

from __future__ import annotations

from typing import Any

import torch

from patchsae.bench.case import Work
from patchsae.bench.inputs import Inputs
from patchsae_kernels.cpu import peak


def product_floor() -> Work:
    """One product x W_enc ``[N, S]`` in the narrowest type: on a CPU on registers alone, on a GPU by cuBLAS."""
    return Work("one low-precision product at the machine's rate", _product)


def _product(i: Inputs) -> Any:
    if i.device.type == "cpu":
        return peak.spend(2 * len(i.x) * i.size.d_in * i.size.d_sae)
    return torch.mm(i.x.bfloat16(), i.W_enc.bfloat16())

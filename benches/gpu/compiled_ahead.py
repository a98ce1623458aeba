"""Compiles the opponent of torch.compile into PyTorch's cache: ``python -m benches.gpu.compiled_ahead N D S DEVICE``.

In a process of its own, beside those that compile kernels: that compiler's cold start takes longer than a line.
"""

from __future__ import annotations

import sys

import torch

from benches.gpu.bench import multiply_in_float32
from benches.gpu.lines import compiled


def compile_opponent(n: int, d: int, s: int, device: str) -> None:
    """Run it once on tensors of the shapes and strides and under the switches that the table has: they are its key."""
    multiply_in_float32()
    shapes = (n, d), (d, s), (s,), (s, d), (d,)
    compiled("inductor")(*(torch.zeros(shape, device=device) for shape in shapes))


if __name__ == "__main__":
    tokens, width, latents, part = sys.argv[1:]
    compile_opponent(int(tokens), int(width), int(latents), part)

"""The passes over dense latents between the library's products, while most of a training step's latents are active."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch

RELU_ROWS, RELU_BLOCK = 4, 1024
GATE_ROWS, GATE_BLOCK = 16, 128


def relu(pre: Tensor, bias: Tensor, out: Tensor, gate: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
    """``out = relu(pre + bias)``; what is not a number stays that.

    Args:
        pre: float32 ``[n, S]``. bias: float32 ``[S]``.
        out: ``[n, S]`` float32 or bfloat16, written; ``pre`` itself may be given.
        gate: uint8 ``[n, S]``, written: 1 where a latent is active.
        fired: uint8 ``[S]``, becomes 1 where a latent is active on any token.

    Returns:
        The sum of every token's latents, float32 ``[n]``, and their number, int32 ``[n]``.
    """
    tokens, latents = pre.shape
    sums, counts = pre.new_empty(tokens), pre.new_empty(tokens, dtype=torch.int32)
    launch(
        dense_relu_kernel,
        (triton.cdiv(tokens, RELU_ROWS),),
        *(pre, bias, out, gate, fired, sums, counts, tokens, latents),
        ROWS=RELU_ROWS,
        BLOCK=RELU_BLOCK,
        num_warps=8,
        num_stages=1,
    )
    return sums, counts


def gated(grad: Tensor, out: Tensor, gate: Tensor, constant: float, grad_b: Tensor) -> None:
    """``out = (grad + constant) * gate``, all ``[n, S]``; its sum over the tokens is added to ``grad_b`` ``[S]``.

    ``grad`` is float32 and may be given as ``out``, which is float32 or bfloat16; the sum is that before rounding.
    """
    tokens, latents = grad.shape
    launch(
        dense_gate_kernel,
        (triton.cdiv(latents, GATE_BLOCK),),
        *(grad, out, gate, grad_b, constant, tokens, latents),
        ROWS=GATE_ROWS,
        BLOCK=GATE_BLOCK,
        num_warps=4,
        num_stages=1,
    )


@triton.jit
def dense_relu_kernel(pre, bias, out, gate, fired, sums, counts, tokens, S, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """One program is a few tokens.

    Memory: 4 bytes read and 5 written an element (3 with bfloat16), 11 GB a paper batch: 2.3 ms (1.8).
    Several programs may mark the same latent as fired: all of them write 1.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < tokens
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    count = tl.zeros([ROWS, BLOCK], tl.int32)
    for start in range(0, S, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        mask = there[:, None] & (latent < S)[None, :]
        place = row[:, None] * S + latent[None, :]
        value = tl.load(pre + place, mask=mask, other=0.0) + tl.load(bias + latent, mask=latent < S, other=0.0)[None, :]
        value = tl.where(mask, value, 0.0)  # tokens past the end have no latents
        active = (value > 0).to(tl.int32)
        value = tl.where(value <= 0, 0.0, value)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
        tl.store(gate + place, active.to(tl.uint8), mask=mask)
        anywhere = tl.max(active, 0)
        tl.store(fired + latent, anywhere.to(tl.uint8), mask=(anywhere > 0) & (latent < S))
        total += value
        count += active
    tl.store(sums + row, tl.sum(total, 1), mask=there)
    tl.store(counts + row, tl.sum(count, 1), mask=there)


@triton.jit
def dense_gate_kernel(grad, out, gate, grad_b, constant, tokens, S, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """One program is a block of latents, and has their sums.

    Memory: 5 bytes read and 4 written an element (2 with bfloat16): 2.3 ms a paper batch (1.8).
    """
    latent = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = latent < S
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tokens, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (row < tokens)[:, None] & inside[None, :]
        place = row[:, None] * S + latent[None, :]
        value = tl.load(grad + place, mask=mask, other=0.0)
        active = tl.load(gate + place, mask=mask, other=0).to(tl.float32)
        value = (value + constant) * active
        tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
        total += tl.sum(value, 0)
    tl.store(grad_b + latent, tl.load(grad_b + latent, mask=inside, other=0.0) + total, mask=inside)

"""The ghost term of the training step: dense products over the dead latents alone, in bounded parts.

What bounds it: five products of N x D x G for G dead latents, in float32 1.9 TFLOP at the paper's size with a fifth of
the latents dead: 38 ms at 50 TFLOP/s, 6 ms where PyTorch's switch allows TF32, 2.5 ms in bfloat16. Everything else is
one pass over the tokens and three over the exponentials, 3 GB.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch
from patchsae_kernels.triton.widening import add_product, product


class Rows(NamedTuple):
    """The parameters, or their gradients, with a row for every latent; contiguous."""

    enc: Tensor  # [S, D]
    b_enc: Tensor  # [S]
    dec: Tensor  # [S, D]


class Dead(NamedTuple):
    """The latents that get the ghost term."""

    latents: Tensor  # int64 [G], each once
    number: Tensor | None = None  # int64 [], how many of these count, the first ones; None: all of them


def add_ghost(
    x: Tensor,
    error: Tensor,
    dead: Dead,
    w: Rows,
    b_dec: Tensor,
    grads: Rows,
    elements: int,
    dtype: torch.dtype,
    budget: int,
) -> Tensor:
    """The sum of the ghost term over some tokens, float64; adds its gradient to the rows of the dead latents.

    The formula stands at the top of `patchsae_kernels.reference.training`. Temporaries stay within about ``budget``
    bytes. Reads nothing back.

    Args:
        x, error: ``[N, D]``, the tokens, and reconstruction - x.
        elements: of the whole batch; the mean runs over them.
        dtype: what the products multiply, float32 or bfloat16.
    """
    size, width, latents = x.element_size(), x.shape[1], dead.latents
    most = max(1, budget // (8 * size * width))  # four matrices of such rows: half of the budget
    parts = [
        Dead(part, None if dead.number is None else dead.number - i * most)
        for i, part in enumerate(latents.split(most))
        for i, part in enumerate(latents.split(most))
    ]
    most = max(1, budget // (4 * size * max(1, latents.shape[0])))  # exp of a slice, and one part's gradient
    slices = max(1, triton.cdiv(x.shape[0], most))
    step = max(1, triton.cdiv(x.shape[0], slices))
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        total += _add_slice(x[rows], error[rows], parts, w, b_dec, grads, elements, dtype)
    return total if dead.number is None else torch.where(dead.number > 0, total, 0)  # none dead: no term either


def _add_slice(
    x: Tensor,
    error: Tensor,
    parts: list[Dead],
    w: Rows,
    b_dec: Tensor,
    grads: Rows,
    elements: int,
    dtype: torch.dtype,
) -> Tensor:
    inputs = (x - b_dec).to(dtype)
    raw, exps = torch.zeros_like(x), []
    for part in parts:
        pre = x.new_empty(x.shape[0], part.latents.shape[0])
        product(inputs, w.enc[part.latents].to(dtype).t(), out=pre)
        exp = pre.add_(_biases(part, w.b_enc)).exp_().to(dtype)
        add_product(raw, exp, w.dec[part.latents].to(dtype))
        exps.append(exp)
    term = ghost_term(x, error, raw, elements)
    g = raw.to(dtype)
    for part, exp in zip(parts, exps, strict=True):
        # Every latent is in one part once, so that copying back what was added to is in order: no atomics.
        at = part.latents
        grads.dec.index_copy_(0, at, add_product(grads.dec[at], exp.t(), g))
        grad_pre = product(g, w.dec[at].to(dtype).t(), out=x.new_empty(exp.shape)).mul_(exp)
        grads.b_enc.index_copy_(0, at, grads.b_enc[at] + grad_pre.sum(0))
        grads.enc.index_copy_(0, at, add_product(grads.enc[at], grad_pre.to(dtype).t(), inputs))
    return term.sum(dtype=torch.float64)


def _biases(part: Dead, b_enc: Tensor) -> Tensor:
    """``[G]``; a latent that does not count has the exponential, and with it the gradient, of minus infinity."""
    biases = b_enc[part.latents]
    if part.number is None:
        return biases
    return torch.where(torch.arange(biases.shape[0], device=biases.device) < part.number, biases, float("-inf"))


def ghost_term(x: Tensor, error: Tensor, raw: Tensor, elements: int) -> Tensor:
    """Each token's sum of the term ``[N]``; ``raw``, the dead latents' output, becomes the term's gradient by it."""
    tokens, width = x.shape
    terms = x.new_empty(tokens)
    block = max(16, triton.next_power_of_2(width))
    options = {"D": width, "BLOCK_D": block, "num_warps": min(16, max(1, block // 256)), "num_stages": 1}
    launch(ghost_term_kernel, (tokens,), x, error, raw, terms, 2 / elements, **options)
    return terms


@triton.jit
def ghost_term_kernel(x, error, raw, terms, factor, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program is one token. Memory: three rows read, one written, 310 MB for a paper batch: 65 us."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    place = token * D + columns
    inputs = tl.load(x + place, mask=inside, other=0.0)
    missing = tl.load(error + place, mask=inside, other=0.0)
    output = tl.load(raw + place, mask=inside, other=0.0)
    length = tl.sqrt_rn(tl.sum(missing * missing, 0))
    scale = length / (1e-6 + 2 * tl.sqrt_rn(tl.sum(output * output, 0)))
    difference = output * scale + missing
    # A token that is reconstructed without error has no ghost term (released code: 0 / 0).
    inverse = tl.where(length > 0, 1 / tl.where(length > 0, length, 1.0), 0.0)
    term = difference * difference * inverse
    weight = missing * missing / tl.sqrt_rn(tl.sum(inputs * inputs, 0)) / (term + 1e-6)
    tl.store(raw + place, difference * weight * inverse * scale * factor, mask=inside)
    tl.store(terms + token, tl.sum(tl.where(inside, weight * term, 0.0), 0))

"""The ghost term of the training step: dense products over the dead latents alone, in bounded parts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patchsae_kernels.cpu.latent_major import add_column_sums
from patchsae_kernels.cpu.product import product

MOST_TOKENS = 8192
"""In one slice: torch sums fewer than 32,768 numbers in one order, more of them by thread."""


class Rows(NamedTuple):
    """The parameters, or their gradients, with a row for every latent."""

    enc: Tensor  # [S, D]
    b_enc: Tensor  # [S]
    dec: Tensor  # [S, D]


def add_ghost(
    x: Tensor, centred: Tensor, error: Tensor, dead: Tensor, w: Rows, grads: Rows, elements: int, budget: int
) -> Tensor:
    """The sum of the ghost term over some tokens, float64; adds its gradient to the rows of the dead latents.

    The formula stands at the top of `patchsae_kernels.reference.training`. Temporaries stay within about ``budget``
    bytes.

    Args:
        x, centred, error: ``[N, D]``, the tokens, the tokens without b_dec, and reconstruction - x.
        dead: int64, the dead latents, each once.
        elements: of the whole batch; the mean runs over them.
    """
    width, size = x.shape[1], x.element_size()
    parts = dead.split(max(1, budget // (8 * size * width)))  # four matrices of such rows: half of the budget
    step = min(
        MOST_TOKENS, max(1, budget // (4 * size * dead.shape[0]))
    )  # exp of a slice of the tokens, and one part's gradient
    total = x.new_zeros((), dtype=torch.float64)
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        total += _add_slice(x[rows], centred[rows], error[rows], parts, w, grads, elements)
    return total


def _add_slice(
    x: Tensor, centred: Tensor, error: Tensor, parts: tuple[Tensor, ...], w: Rows, grads: Rows, elements: int
) -> Tensor:
    raw, exps = torch.zeros_like(x), []
    for part in parts:
        exp = product(centred, w.enc[part].t()).add_(w.b_enc[part]).exp_()
        product(exp, w.dec[part], into=raw)
        exps.append(exp)
    term, grad_raw = _term(x, error, raw, elements)
    for part, exp in zip(parts, exps, strict=True):
        grads.dec.index_add_(0, part, product(exp.t(), grad_raw))
        grad_pre = exp.mul_(product(grad_raw, w.dec[part].t()))
        grads.enc.index_add_(0, part, product(grad_pre.t(), centred))
        sums = x.new_zeros(part.shape[0], dtype=torch.float64)
        add_column_sums(sums, grad_pre)
        grads.b_enc.index_add_(0, part, sums.float())
    return term


def _term(x: Tensor, error: Tensor, raw: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """The sum of the term, and its gradient by ``raw``, the output of the dead latents before its rescaling."""
    length = error.norm(dim=1, keepdim=True)
    scale = length / (1e-6 + 2 * raw.norm(dim=1, keepdim=True))
    difference = raw * scale + error
    # A token that is reconstructed without error has no ghost term (released code: 0 / 0).
    inverse = torch.where(length > 0, 1 / length, 0)
    term = difference.square() * inverse
    factor = error.square() / x.norm(dim=1, keepdim=True) / (term + 1e-6)
    grad_raw = difference * factor * inverse * scale * (2 / elements)
    return (factor * term).sum(1).sum(dtype=torch.float64), grad_raw

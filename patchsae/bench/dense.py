"""What the cases are measured against: plain PyTorch on dense latents, float32. No kernel is used here."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae.bench.inputs import Problem

Parameters = dict[str, Tensor]


def pre_activations(p: Problem) -> Tensor:
    return torch.addmm(p.b_enc, p.x - p.b_dec, p.W_enc)


def relu(p: Problem) -> Tensor:
    return pre_activations(p).relu_()


def topk(p: Problem, k: int) -> Any:
    return torch.topk(relu(p), k, dim=1)


def jumprelu(p: Problem) -> Tensor:
    pre = pre_activations(p)
    return pre * (pre > p.threshold)


def decode(p: Problem, precision: str = "fp32") -> Tensor:
    W = p.dictionary(precision)
    return torch.addmm(p.b_dec.to(W.dtype), p.dense(precision), W)


def masked(p: Problem, k: int) -> Tensor:
    """Only the k first latents of a token's class."""
    return torch.addmm(p.b_dec, p.dense() * p.keep(k)[p.class_ids], p.W_dec)


def bag(p: Problem) -> Tensor:
    """Sparse, by the product that PyTorch has for it."""
    z = p.z
    summed = F.embedding_bag(
        z.indices, p.W_dec, z.indptr.int(), mode="sum", per_sample_weights=z.values, include_last_offset=True
    )
    return summed.add_(p.b_dec)


def sweep(p: Problem) -> tuple[Tensor, Tensor]:
    """One masked dense product for every k, on and off."""
    on, off = [], []
    for k in p.size.sweep:
        kept = p.dense() * (p.rank < k)[p.class_ids]
        on.append(torch.addmm(p.b_dec, kept, p.W_dec))
        off.append(torch.addmm(p.b_dec, p.dense() - kept, p.W_dec))
    return torch.stack(on), torch.stack(off)


def stats(p: Problem, tau: float) -> tuple[Tensor, ...]:
    """Sums, counts and maxima ``[S]``, counts by class ``[C, S]``."""
    h = p.dense()
    over = h > tau
    classes = torch.zeros(p.size.classes, p.size.d_sae, device=p.device).index_add_(0, p.class_ids, over.float())
    return h.sum(0), over.sum(0), h.max(0).values, classes


def pooled(p: Problem) -> Tensor:
    return p.dense().view(p.size.images, p.size.tokens, -1).sum(1)


def step(p: Problem, l1: float) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of all parameters."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in p.parameters.items()}
    total = loss(p.x, leaves, l1)
    total.backward()
    return total.detach(), [gradient(leaf) for leaf in leaves.values()]


def loss(x: Tensor, p: Parameters, l1: float) -> Tensor:
    """The released loss (arXiv 2412.05276) of tokens ``[N, D]`` without a dead term, CLS weighted like any token."""
    h = torch.addmm(p["b_enc"], x - p["b_dec"], p["W_enc"]).relu()
    error = torch.addmm(p["b_dec"], h, p["W_dec"]) - x
    return relative_error(error, x) + l1 * h.sum(1).mean()


def relative_error(error: Tensor, x: Tensor) -> Tensor:
    """Mean of squared errors ``[..., D]`` over ``|x|``."""
    return (error.square() / _lengths(x)).mean()


def ghost(pre: Tensor, W_dec: Tensor, error: Tensor, x: Tensor) -> Tensor:
    """The released term of the dead latents' ``pre [..., dead]`` and ``W_dec [dead, D]``; ``error`` is detached."""
    length = _lengths(error)
    g = pre.exp() @ W_dec
    g = g * (length / (2 * _lengths(g.detach()) + 1e-6))
    term = (g + error).square() / length
    counted = error.square() / _lengths(x)
    return (counted / (term.detach() + 1e-6) * term).mean()


@torch.no_grad()
def update(W_dec: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The gradient's component along each dictionary row taken out, Adam, rows back to unit norm."""
    grad = gradient(W_dec)
    grad -= (grad * W_dec).sum(1, keepdim=True) * W_dec
    optimizer.step()
    W_dec /= _lengths(W_dec)


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _lengths(rows: Tensor) -> Tensor:
    """``[..., 1]``"""
    found: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return found

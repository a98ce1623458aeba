"""The released training loss and loop, written out on dense float64 tensors.

An independent definition of correct: every formula of the method on whole `[.., S]` tensors with autograd's own
backward. Nothing here is shared with the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


class DenseTerms(NamedTuple):
    """The loss and its parts, 0-d; `active` bool [.., S]."""

    total: Tensor
    mse: Tensor
    l1: Tensor
    ghost: Tensor
    l0: Tensor
    squared_error: Tensor
    active: Tensor


def dense_terms(
    x: Tensor, params: dict[str, Tensor], *, l1: float, dead: Tensor | None, ghost: bool, cls_weight: float
) -> DenseTerms:
    """The released loss of `x` [B, T, D] or [N, D]; `params` float64, differentiable."""
    x = x.double()
    pre = (x - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
    latents = pre.clamp(min=0)
    residual = x - (latents @ params["W_dec"] + params["b_dec"])
    error = residual.square() / x.norm(dim=-1, keepdim=True)
    ghost_term = torch.zeros((), dtype=torch.float64)
    if ghost and dead is not None and bool(dead.any()):
        ghost_term = _ghost(pre[..., dead].exp() @ params["W_dec"][dead], residual.detach(), error.detach())
    weight = torch.ones(x.shape[:-1], dtype=torch.float64)
    if x.dim() == 3:
        weight[:, 0] = cls_weight
    mse = (error * weight.unsqueeze(-1)).mean()
    sparsity = l1 * latents.sum(dim=-1).mean()
    active = pre.detach() > 0
    return DenseTerms(
        total=mse + sparsity + ghost_term,
        mse=mse,
        l1=sparsity,
        ghost=ghost_term,
        l0=active.double().sum(dim=-1).mean(),
        squared_error=residual.square().sum(),
        active=active,
    )


def _ghost(output: Tensor, residual: Tensor, error: Tensor) -> Tensor:
    scale = residual.norm(dim=-1, keepdim=True) / (2 * output.detach().norm(dim=-1, keepdim=True) + 1e-6)
    term = (output * scale - residual).square() / residual.norm(dim=-1, keepdim=True)
    return (term * (error / (term.detach() + 1e-6))).mean()


def dense_gradients(
    x: Tensor, params: dict[str, Tensor], **settings: float | bool | Tensor | None
) -> tuple[DenseTerms, dict[str, Tensor]]:
    """`dense_terms` of float64 copies of `params`, and the gradient of the total by each of them."""
    leaves = {name: params[name].detach().double().clone().requires_grad_() for name in NAMES}
    terms = dense_terms(x, leaves, **settings)  # type: ignore[arg-type]
    grads = torch.autograd.grad(terms.total, [leaves[name] for name in NAMES], allow_unused=True)
    return terms, {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(NAMES, grads, strict=True)}


def dense_loop(
    batches: Iterable[Tensor],
    params: dict[str, Tensor],
    *,
    lr: float,
    warm_up_steps: int,
    dead_window: int,
    l1: float,
    ghost: bool,
    cls_weight: float,
) -> tuple[list[DenseTerms], dict[str, Tensor], Tensor]:
    """The released loop: per step unit rows, forward, backward, projection, Adam, scheduler.

    Returns the terms of every step, the final float64 parameters (decoder rows one step off unit norm) and the
    counters of steps since each latent fired.
    """
    leaves = {name: params[name].detach().double().clone().requires_grad_() for name in NAMES}
    optimizer = torch.optim.Adam(list(leaves.values()), lr=lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm_up_steps))
    since_fired = torch.zeros(leaves["b_enc"].shape, dtype=torch.int64)
    history = []
    for x in batches:
        rows = leaves["W_dec"]
        optimizer.zero_grad()
        with torch.no_grad():
            rows /= rows.norm(dim=1, keepdim=True)
        dead = since_fired > dead_window
        terms = dense_terms(x, leaves, l1=l1, dead=dead, ghost=ghost, cls_weight=cls_weight)
        since_fired += 1
        since_fired[terms.active.flatten(0, -2).any(dim=0)] = 0
        terms.total.backward()
        with torch.no_grad():
            assert rows.grad is not None
            rows.grad -= (rows.grad * rows).sum(dim=1, keepdim=True) * rows
        optimizer.step()
        scheduler.step()
        history.append(DenseTerms(*(t.detach() for t in terms)))
    return history, {name: leaf.detach() for name, leaf in leaves.items()}, since_fired

"""Every variant's loss written out on dense float64 tensors, from the papers.

An independent definition of correct: whole `[N, S]` tensors and autograd's own backward. Pseudo-derivatives are added
as terms of value 0. Nothing here is shared with the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """One variant, its settings and what is common to all."""

    variant: str
    published: bool = False
    cls_weight: float = 1.0
    dead_term: str = "none"
    l1: float = 0.02
    l0: float = 0.03
    k: int = 3
    bandwidth: float = 0.4
    prefixes: tuple[float, ...] = (0.25, 0.5, 1.0)
    auxk: int = 2
    auxk_coefficient: float = 0.5


class Dense(NamedTuple):
    """The loss and its parts, 0-d; `active` bool [N, S]; `y` [N, D]."""

    total: Tensor
    mse: Tensor
    l1: Tensor
    ghost: Tensor
    l0: Tensor
    squared_error: Tensor
    active: Tensor
    y: Tensor


class Encoded(NamedTuple):
    """Latents [N, S], and the penalty: per token, or a function of how errors count that gives it."""

    latents: Tensor
    penalty: Callable[[Callable[[Tensor], Tensor]], Tensor]


def dense_loss(x: Tensor, p: dict[str, Tensor], dead: Tensor | None, recipe: Recipe) -> Dense:
    """The loss of `x` [B, T, D] or [N, D] with float64 parameters `p`."""
    flat = x.double().reshape(-1, x.shape[-1])
    weight = torch.ones(x.shape[:-1], dtype=torch.float64)
    if x.dim() == 3:
        weight[:, 0] = recipe.cls_weight
    weight = weight.reshape(-1)

    def elementwise(error: Tensor) -> Tensor:
        return error.square() if recipe.published else error.square() / flat.norm(dim=1, keepdim=True)

    def reduced(values: Tensor) -> Tensor:
        """[N, D] -> [N]"""
        return values.sum(1) if recipe.published else values.mean(1)

    encoded = ENCODERS[recipe.variant](flat, p, recipe)
    latents = encoded.latents
    mse = torch.zeros((), dtype=torch.float64)
    shares = recipe.prefixes if recipe.variant == "matryoshka" else (1.0,)
    for share in shares:
        end = round(share * latents.shape[1])
        y = latents[:, :end] @ p["W_dec"][:end] + p["b_dec"]
        mse = mse + (weight * reduced(elementwise(y - flat))).mean()
    penalty = encoded.penalty(lambda error: weight * reduced(elementwise(error))).mean()
    error = (flat - y).detach()
    extra = torch.zeros((), dtype=torch.float64)
    if dead is not None and bool(dead.any()) and recipe.dead_term != "none":
        pre = (flat - p["b_dec"]) @ p["W_enc"][:, dead] + p["b_enc"][dead]
        if recipe.dead_term == "ghost":
            extra = reduced(ghost(pre.exp() @ p["W_dec"][dead], error, elementwise(error))).mean()
        else:
            of_error = top(pre, recipe.auxk) @ p["W_dec"][dead]
            extra = recipe.auxk_coefficient * reduced(elementwise(error - of_error)).mean()
    active = latents.detach() > 0
    l0 = active.double().sum(1).mean()
    return Dense(mse + penalty + extra, mse, penalty, extra, l0, error.square().sum(), active, y)


def dense_gradients(
    x: Tensor, params: dict[str, Tensor], dead: Tensor | None, recipe: Recipe
) -> tuple[Dense, dict[str, Tensor]]:
    """`dense_loss` of float64 copies of `params`, and the gradient of the total by each of them."""
    leaves = {name: p.detach().double().clone().requires_grad_() for name, p in params.items()}
    terms = dense_loss(x, leaves, dead, recipe)
    grads = torch.autograd.grad(terms.total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return terms, dict(zip(leaves, grads, strict=True))


def ghost(output: Tensor, residual: Tensor, error: Tensor) -> Tensor:
    scale = residual.norm(dim=-1, keepdim=True) / (2 * output.detach().norm(dim=-1, keepdim=True) + 1e-6)
    term = (output * scale - residual).square() / residual.norm(dim=-1, keepdim=True)
    return term * (error / (term.detach() + 1e-6))


def pre_activations(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]


def top(pre: Tensor, k: int) -> Tensor:
    """The k largest positive entries of every row, zeros elsewhere."""
    rank = pre.detach().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return pre * ((rank < k) & (pre > 0))


def none(count: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.zeros(1, dtype=torch.float64)


def relu(x: Tensor, p: dict[str, Tensor], recipe: Recipe) -> Encoded:
    latents = pre_activations(x, p).relu()
    return Encoded(latents, lambda count: recipe.l1 * latents.sum(1))


def topk(x: Tensor, p: dict[str, Tensor], recipe: Recipe) -> Encoded:
    return Encoded(top(pre_activations(x, p), recipe.k), none)


def batchtopk(x: Tensor, p: dict[str, Tensor], recipe: Recipe) -> Encoded:
    pre = pre_activations(x, p)
    return Encoded(top(pre.reshape(1, -1), recipe.k * len(x)).view(pre.shape), none)


def jumprelu(x: Tensor, p: dict[str, Tensor], recipe: Recipe) -> Encoded:
    z, theta = pre_activations(x, p), p["log_threshold"].exp()
    above = (z > theta).double()
    kernel = (((z - theta) / recipe.bandwidth).abs() < 0.5).double()
    moved = theta - theta.detach()
    latents = z * above - (theta / recipe.bandwidth * kernel).detach() * moved
    heaviside = above - (kernel / recipe.bandwidth).detach() * moved
    return Encoded(latents, lambda count: recipe.l0 * heaviside.sum(1))


def gated(x: Tensor, p: dict[str, Tensor], recipe: Recipe) -> Encoded:
    gate = pre_activations(x, p)
    magnitude = (x - p["b_dec"]) @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]

    def penalty(count: Callable[[Tensor], Tensor]) -> Tensor:
        frozen = gate.relu() @ p["W_dec"].detach() + p["b_dec"].detach()
        return recipe.l1 * gate.relu().sum(1) + count(frozen - x)

    return Encoded((gate > 0) * magnitude.relu(), penalty)


ENCODERS = {
    "relu": relu,
    "topk": topk,
    "batchtopk": batchtopk,
    "matryoshka": batchtopk,
    "jumprelu": jumprelu,
    "gated": gated,
}

"""The training step in plain PyTorch: loss and gradients of the released recipe, and its optimiser.

With e = z_hat - z and |z| the uncentred norm of the token (released loss, Lim et al. 2024, code):

    mse   = mean over tokens and D of  c e^2 / |z|,   c = cls_weight on token 0 of every image, else 1
    l1    = l1 * mean over tokens of sum_s |h_s|
    g     = exp(pre[dead]) W_dec[dead], scaled by stop(|e| / (2 |g| + 1e-6))
    term  = (g - stop(-e))^2 / stop(|e|)
    ghost = mean of stop(mse without c / (term + 1e-6)) * term

With ``precision="bf16"`` both operands of every product are rounded to bfloat16, and nothing else is. Everything runs
in row chunks; dense latents of the whole batch never exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from patchsae_kernels.calls import AdamCall, StepCall
from patchsae_kernels.reference.sparse import rounded, row_chunks

Rounding = Callable[[Tensor], Tensor]
T = TypeVar("T", int, Tensor)


class _Sums(NamedTuple):
    """Float64 totals over the batch."""

    mse: Tensor
    l1: Tensor
    ghost: Tensor
    active: Tensor
    squared_error: Tensor


class _Weights(NamedTuple):
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def sae_step(call: StepCall) -> list[Tensor]:
    """Terms and gradients: ``[total, mse, l1, ghost, l0, squared_error, fired, dW_enc, db_enc, dW_dec, db_dec]``."""
    x, l1 = call.x, call.l1
    low = rounded if call.precision == "bf16" else _as_is
    w = _Weights(*call.weights)
    multiplied = w._replace(W_enc=low(w.W_enc), W_dec=low(w.W_dec))
    grads = _Weights(*(torch.zeros_like(p) for p in w))
    fired = torch.zeros(w.W_enc.shape[1], dtype=torch.bool, device=x.device)
    sums = [torch.zeros((), dtype=torch.float64, device=x.device) for _ in _Sums._fields]
    tokens = max(x.shape[0], 1)
    for rows in row_chunks(x.shape[0], w.W_enc.shape[1], call.budget):
        weight = _cls_weights(rows, call.tokens_per_image, call.cls_weight, x)
        parts = _chunk(x[rows], weight, w, multiplied, low, grads, fired, call.dead, l1, tokens)
        for total, part in zip(sums, parts, strict=True):
            total += part
    s = _Sums(*sums)
    elements = tokens * max(x.shape[1], 1)
    mse, sparsity, ghost = s.mse / elements, l1 * s.l1 / tokens, s.ghost / elements
    scalars = (mse + sparsity + ghost, mse, sparsity, ghost, s.active / tokens, s.squared_error)
    return [*(value.to(x.dtype) for value in scalars), fired, *grads]


def _chunk(
    x: Tensor,
    weight: Tensor,
    w: _Weights,
    multiplied: _Weights,
    low: Rounding,
    grads: _Weights,
    fired: Tensor,
    dead: Tensor | None,
    l1: float,
    tokens: int,
) -> _Sums:
    """Totals of one chunk; adds its gradients to ``grads`` and its active latents to ``fired``."""
    centred = low(x - w.b_dec)
    h = torch.addmm(w.b_enc, centred, multiplied.W_enc)
    exp_dead = None if dead is None else h[:, dead].exp()
    h.relu_()
    error = torch.addmm(w.b_dec, low(h), multiplied.W_dec) - x
    norm = x.norm(dim=1, keepdim=True)
    scaled = error.square() / norm
    grad_y = error * (2 * weight / (norm * (tokens * x.shape[1])))
    gate = torch.gt(h, 0, out=torch.empty_like(h))  # 1 where active; sums and products of booleans are slow on a CPU
    fired |= gate.amax(0) > 0
    grads.W_dec.addmm_(low(h).t(), low(grad_y))
    # Float64 only over the rows' sums: a float64 sum of everything costs as much as two of the products.
    total_h, total_active = (m.sum(1).sum(dtype=torch.float64) for m in (h, gate))
    grad_pre = torch.mm(low(grad_y), multiplied.W_dec.t(), out=h)  # h is not needed any more: its memory is
    grad_pre.add_(l1 / tokens).mul_(gate)
    ghost = _ghost(error, scaled, exp_dead, dead, multiplied, low, grads, grad_pre, tokens) if dead is not None else 0.0
    grads.W_enc.t().addmm_(low(grad_pre).t(), centred)
    grad_b = grad_pre.sum(0)
    grads.b_enc.add_(grad_b)
    grads.b_dec.add_(grad_y.sum(0)).sub_(w.W_enc @ grad_b)
    return _Sums(
        (scaled * weight).sum(dtype=torch.float64),
        total_h,
        torch.as_tensor(ghost, dtype=torch.float64),
        total_active,
        error.square().sum(dtype=torch.float64),
    )


def _ghost(
    error: Tensor,
    scaled: Tensor,
    exp_dead: Tensor | None,
    dead: Tensor,
    multiplied: _Weights,
    low: Rounding,
    grads: _Weights,
    grad_pre: Tensor,
    tokens: int,
) -> Tensor:
    """Sum of the ghost term over the chunk; adds its gradient to grad_pre (dead columns) and to W_dec (dead rows)."""
    assert exp_dead is not None
    residual = -error
    length: Tensor = residual.norm(dim=1, keepdim=True)
    rows = multiplied.W_dec[dead]
    raw = low(exp_dead) @ rows
    scale: Tensor = length / (1e-6 + 2 * raw.norm(dim=1, keepdim=True))
    difference = raw * scale - residual
    # A token that is reconstructed without error has no ghost term (released code: 0 / 0).
    inverse = torch.where(length > 0, 1 / length, 0)
    term = difference.square() * inverse
    factor = scaled / (term + 1e-6)
    grad_raw = difference * factor * inverse * scale * (2 / (tokens * error.shape[1]))
    grads.W_dec.index_add_(0, dead, low(exp_dead).t() @ low(grad_raw))
    grad_pre.index_add_(1, dead, (low(grad_raw) @ rows.t()).mul_(exp_dead))
    return (factor * term).sum(dtype=torch.float64)


def _as_is(t: Tensor) -> Tensor:
    return t


def _cls_weights(rows: slice, tokens_per_image: int, cls_weight: float, x: Tensor) -> Tensor:
    weight = torch.ones(rows.stop - rows.start, 1, dtype=x.dtype, device=x.device)
    if tokens_per_image:
        first = -rows.start % tokens_per_image
        weight[first::tokens_per_image] = cls_weight
    return weight


def adam_step_(call: AdamCall) -> None:
    """One Adam step in place (Kingma & Ba 2015, bias-corrected as torch.optim.Adam).

    ``unit_rows``: the gradient loses its component along each row of p first, and the rows end with unit norm.
    ``grad`` is not changed. Moments in bfloat16 of a wider p are widened and rounded again stochastically, with a noise
    that depends on ``seed`` and the place of an element alone: see `round_stochastically`.
    """
    p, grad, exp_avg, exp_avg_sq = call.p, call.grad, call.exp_avg, call.exp_avg_sq
    if exp_avg.dtype == torch.bfloat16 and p.dtype != torch.bfloat16:
        moments = exp_avg.to(p.dtype), exp_avg_sq.to(p.dtype)
        adam_step_(replace(call, exp_avg=moments[0], exp_avg_sq=moments[1]))
        noise = _noise(p, call.seed)
        exp_avg.copy_(round_stochastically(moments[0], noise & 0xFFFF))
        exp_avg_sq.copy_(round_stochastically(moments[1], noise >> 16))
        return
    if call.unit_rows:
        grad = grad - (grad * p).sum(1, keepdim=True) * p
    exp_avg.lerp_(grad, 1 - call.beta1)
    exp_avg_sq.mul_(call.beta2).addcmul_(grad, grad, value=1 - call.beta2)
    denominator = (exp_avg_sq.sqrt() / (1 - call.beta2**call.step) ** 0.5).add_(call.eps)
    p.addcdiv_(exp_avg, denominator, value=-call.lr / (1 - call.beta1**call.step))
    if call.unit_rows:
        p.div_(p.norm(dim=1, keepdim=True))


def round_stochastically(x: Tensor, noise: Tensor) -> Tensor:
    """bfloat16 of x, rounded up with the probability of what is cut off: unbiased where ``noise`` is uniform.

    Plain rounding would lose every change below 2^-9 of a second moment, which decays by 2^-10 a step. ``noise`` is
    int64, 0..65535, one for each element.
    """
    bits = x.to(torch.float32).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    upper = (bits + noise) >> 16
    return torch.where(upper >= 2**15, upper - 2**16, upper).to(torch.int16).view(torch.bfloat16)


def mixed(x: T) -> T:
    """32 bits, each of which depends on all 32 of x >= 0 (an integer or an int64 tensor); the mixer is lowbias32."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _noise(p: Tensor, seed: int) -> Tensor:
    """32 random bits for each element, int64, by its place in memory if p has no gaps."""
    turned = p.dim() == 2 and p.stride(1) != 1 and p.stride(0) == 1
    places = torch.arange(p.numel(), device=p.device).view(p.t().shape if turned else p.shape)
    noise = mixed((places & 0xFFFFFFFF) ^ mixed(seed & 0xFFFFFFFF))
    return noise.t() if turned else noise

"""The training recipes written the obvious way: dense latents, autograd, torch.optim.Adam.

What `benches.training` compares with. The equations are those of the papers that `patchsae.training.variants` names;
no code is shared with it. x is [N, D] with CLS weighted like any token, so squared errors count 1 / (D |x|).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from patchsae.bench import dense
from patchsae.training.config import TrainConfig

Params = dict[str, Tensor]


class DenseTrainer:
    """A dense SAE in training.

    Args:
        config: variant, dead_term ("ghost" or "auxk") and their settings; the loss is the released one.
        params: copied; W_enc [D, S], b_enc [S], W_dec [S, D], b_dec [D] and what the variant adds, [S].
        dead: bool [S].
    """

    def __init__(self, config: TrainConfig, params: Params, dead: Tensor, lr: float) -> None:
        self.config, self.dead = config, dead
        self.params = {n: p.detach().clone(memory_format=torch.preserve_format) for n, p in params.items()}
        for parameter in self.params.values():
            parameter.requires_grad_()
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=lr)

    def step(self, x: Tensor) -> Tensor:
        """The total loss of tokens [N, D], before the update."""
        total = self._loss(x)
        total.backward()
        dense.update(self.params["W_dec"], self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return total.detach()

    def _loss(self, x: Tensor) -> Tensor:
        p, config = self.params, self.config
        pre = torch.addmm(p["b_enc"], x - p["b_dec"], p["W_enc"])
        h, penalty = _latents(pre, x, p, config)
        prefixes = config.prefixes if config.variant == "matryoshka" else (1.0,)
        errors = [y - x for y in _reconstructions(h, p, prefixes)]
        total = torch.stack([dense.relative_error(error, x) for error in errors]).sum() + penalty
        left, of_dead = errors[-1].detach(), (pre[:, self.dead], p["W_dec"][self.dead])
        return total + (
            dense.ghost(*of_dead, left, x) if config.dead_term == "ghost" else _auxk(*of_dead, left, x, config)
        )


def _latents(pre: Tensor, x: Tensor, p: Params, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """h [N, S] and the sparsity term."""
    nothing = pre.new_zeros(())
    if config.variant == "relu":
        h = pre.relu()
        return h, config.l1 * h.sum(1).mean()
    if config.variant == "topk":
        kept = pre.relu().topk(config.k, dim=1)
        return torch.zeros_like(pre).scatter(1, kept.indices, kept.values), nothing
    if config.variant in ("batchtopk", "matryoshka"):
        flat = pre.relu().flatten()
        kept = flat.topk(config.k * len(pre))
        return torch.zeros_like(flat).scatter(0, kept.indices, kept.values).view_as(pre), nothing
    if config.variant == "jumprelu":
        h, active = _Jump.apply(pre, p["log_threshold"].exp(), config.bandwidth)
        return h, config.l0 * active.sum(1).mean()
    gate = pre.relu()
    y = torch.addmm(p["b_dec"].detach(), gate, p["W_dec"].detach())
    magnitude = ((pre - p["b_enc"]) * p["r_mag"].exp() + p["b_mag"]).relu()
    return magnitude * (pre.detach() > 0), config.l1 * gate.sum(1).mean() + dense.relative_error(y - x, x)


def _reconstructions(h: Tensor, p: Params, prefixes: Sequence[float]) -> list[Tensor]:
    sizes = [round(share * h.shape[1]) for share in prefixes]
    return [torch.addmm(p["b_dec"], h[:, :size], p["W_dec"][:size]) for size in sizes]


def _auxk(pre: Tensor, W_dec: Tensor, error: Tensor, x: Tensor, config: TrainConfig) -> Tensor:
    """Gao et al. 2024, section 2.4: the largest dead latents reconstruct x - y; `error` is y - x, detached."""
    kept = pre.relu().topk(min(config.auxk, pre.shape[1]), dim=1)
    h = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
    return config.auxk_coefficient * dense.relative_error(h @ W_dec + error, x)


class _Jump(torch.autograd.Function):
    """(h, active) of Rajamanoharan et al. 2024 with its pseudo-derivatives."""

    @staticmethod
    def forward(ctx, pre, theta, bandwidth):  # type: ignore[no-untyped-def]
        active = pre > theta
        in_band = (pre - theta).abs() < bandwidth / 2
        ctx.save_for_backward(active, in_band, theta)
        ctx.bandwidth = bandwidth
        return pre * active, active.to(pre.dtype)

    @staticmethod
    def backward(ctx, grad_h, grad_active):  # type: ignore[no-untyped-def]
        active, in_band, theta = ctx.saved_tensors
        grad_theta = (in_band * (theta * grad_h + grad_active)).sum(0).div(-ctx.bandwidth)
        return grad_h * active, grad_theta, None


def extra_parameters(config: TrainConfig, like: Tensor) -> Params:
    """What a variant trains beside the four, [S] as `like`."""
    starts = {"jumprelu": {"log_threshold": math.log(config.threshold)}, "gated": {"r_mag": 0.0, "b_mag": 0.0}}
    return {name: torch.full_like(like, value) for name, value in starts.get(config.variant, {}).items()}

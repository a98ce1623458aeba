"""The public ops of training: `sae_step` (loss and gradients) and `adam_step` (projection, Adam, unit rows)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from patchsae_kernels import checks

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


class StepTerms(NamedTuple):
    """Terms of the released loss over one batch, scalars in the dtype of x, and what the counters need.

    Attributes:
        total: mse + l1 + ghost.
        mse: mean over tokens and D of the squared error over the token's norm; CLS weight included.
        l1: the sparsity term; coefficient included.
        ghost: the dead latents' term; 0 without dead latents.
        l0: mean number of active latents per token.
        squared_error: plain sum of (z_hat - z)^2 over everything.
        fired: bool ``[S]``, latents active on any token.
    """

    total: Tensor
    mse: Tensor
    l1: Tensor
    ghost: Tensor
    l0: Tensor
    squared_error: Tensor
    fired: Tensor


@dataclass
class AdamState:
    """Moments of Adam by parameter name, in the parameters' own layout; ``step`` counts the steps taken."""

    step: int
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]


def sae_step(
    x: Tensor,
    params: Mapping[str, Tensor],
    *,
    l1: float,
    dead: Tensor | None = None,
    ghost: bool = True,
    cls_weight: float = 1.0,
    precision: str = "exact",
    budget_mb: float = 256,
) -> tuple[StepTerms, dict[str, Tensor]]:
    """Forward and backward of the released loss of a ReLU SAE, without an autograd graph.

    mean (z_hat - z)^2 / |z|  +  l1 * mean_tokens sum_s |h_s|  +  ghost term over the dead latents: the formula stands
    at the top of `patchsae_kernels.reference_training`.

    Args:
        x: ``[B, T, D]`` float32, token 0 of every image being CLS; or ``[N, D]``, tokens that are all alike.
        params: ``W_enc [D, S]``, ``b_enc [S]``, ``W_dec [S, D]``, ``b_dec [D]``, float32.
        l1: coefficient of the sparsity term.
        dead: bool ``[S]``, the latents that get the ghost term.
        cls_weight: factor on the squared error of CLS tokens.
        precision: as in `encode`; bfloat16 products are not offered here yet.
        budget_mb: the most memory for dense pre-activations and their temporaries at any time, in MB.

    Returns:
        The terms, and the gradient of ``total`` for each parameter in the parameter's own layout.
    """
    W_enc, b_enc, W_dec, b_dec = (_parameter(params, name) for name in PARAMETERS)
    checks.encoder_weights(W_enc, b_enc, b_dec)
    checks.shape("W_dec", W_dec, (W_enc.shape[1], W_enc.shape[0]), "[S, D]")
    checks.dtype("W_dec", W_dec, (W_enc.dtype,))
    if x.dim() not in (2, 3) or x.shape[-1] != W_enc.shape[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, T, D] or [N, D] with D = {W_enc.shape[0]}")
    checks.dtype("x", x, (W_enc.dtype,))
    checks.same_device(x=x, W_enc=W_enc, W_dec=W_dec, dead=dead)
    checks.option("precision", precision, ("exact", "fp32"))
    if dead is not None:
        checks.shape("dead", dead, (W_enc.shape[1],), "[S]")
        checks.dtype("dead", dead, (torch.bool,))
    index = None
    if ghost and dead is not None:
        found = dead.nonzero().squeeze(1)  # on a GPU it reads their number
        index = found if found.shape[0] else None
    with torch.no_grad():
        *terms, dW_enc, db_enc, dW_dec, db_dec = torch.ops.patchsae.sae_step(
            x.detach().reshape(-1, x.shape[-1]),
            W_enc.detach(),
            b_enc.detach(),
            W_dec.detach(),
            b_dec.detach(),
            index,
            l1,
            cls_weight,
            x.shape[1] if x.dim() == 3 else 0,
            checks.budget_bytes(budget_mb),
        )
    return StepTerms(*terms), {"W_enc": dW_enc, "b_enc": db_enc, "W_dec": dW_dec, "b_dec": db_dec}


def adam_init(params: Mapping[str, Tensor]) -> AdamState:
    """Zero moments for the parameters of a SAE."""
    zeros = [{name: torch.zeros_like(_parameter(params, name).detach()) for name in PARAMETERS} for _ in range(2)]
    return AdamState(0, *zeros)


def adam_step(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: AdamState,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    unit_norm: bool = True,
) -> None:
    """One optimiser step in place on params and state (Kingma & Ba 2015, as torch.optim.Adam).

    ``unit_norm``: W_dec's gradient first loses its component along each dictionary row, and the rows are rescaled to
    unit norm at the end. The released code rescales at the start of the next step instead: the same sequence of losses.
    """
    state.step += 1
    with torch.no_grad():
        for name in PARAMETERS:
            torch.ops.patchsae.adam_step_(
                _parameter(params, name).detach(),
                _parameter(grads, name),
                state.exp_avg[name],
                state.exp_avg_sq[name],
                state.step,
                lr,
                betas[0],
                betas[1],
                eps,
                unit_norm and name == "W_dec",
            )


def _parameter(params: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in params:
        raise KeyError(f"params has no {name!r}; expected {', '.join(PARAMETERS)} and got {', '.join(params)}")
    return params[name]

"""Ghost gradients: the dead latents alone reconstruct the residual, through the exponential of their pre-activation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchsae.parallel.base import Parallel
from patchsae.training.variants.chunks import slices
from patchsae.training.variants.error import Tokens
from patchsae.training.variants.variant import Params

EPSILON = 1e-6
"""Of the released code, in both divisions."""


class Ghost:
    """The released term, for every variant (released code of arXiv 2412.05276).

        g    = exp(pre[dead]) W_dec[dead], scaled by stop(|r| / (2 |g| + 1e-6)),  r = x - y
        term = stop(error / (t + 1e-6)) * t,  t = (g - stop(r))^2 / stop(|r|),  elementwise

    error is the squared error as the variant's loss counts it, without the weight of CLS; so is the mean. pre is
    (x - b_dec) W_enc + b_enc, whatever the variant makes of it. A token without error has no term.
    """

    def add(
        self,
        tokens: Tokens,
        error: Tensor,
        dead: Tensor,
        params: Params,
        grads: Mapping[str, Tensor],
        count: int,
        budget: int,
        parallel: Parallel,
    ) -> Tensor:
        """See `DeadTerm.add`."""
        total = torch.zeros((), dtype=torch.float64, device=error.device)
        size, width = error.element_size(), error.shape[1]
        parts = dead.split(max(1, budget // (8 * size * width)))  # four matrices of their rows: half of the budget
        longest = int(parallel.gather_latents(dead.new_tensor([len(dead)])).max())
        for rows in slices(len(error), budget // (4 * size * longest)):  # exp of a slice, and one part's gradient
            total += _add_slice(tokens[rows], error[rows], parts, params, grads, count, parallel)
        return total


def _add_slice(
    tokens: Tokens,
    error: Tensor,
    parts: tuple[Tensor, ...],
    params: Params,
    grads: Mapping[str, Tensor],
    count: int,
    parallel: Parallel,
) -> Tensor:
    """Dense products over the dead latents, once forward and twice back."""
    encoder, b_enc, W_dec = (params[name].detach() for name in ("W_enc", "b_enc", "W_dec"))
    centred = tokens.x - params["b_dec"].detach()
    raw, exps = torch.zeros_like(error), []
    for part in parts:
        exp = torch.addmm(b_enc[part], centred, encoder.t()[part].t()).exp_()
        raw.addmm_(exp, W_dec[part])
        exps.append(exp)
    parallel.sum_latents_([raw])
    term, grad_raw = _term(tokens.scale, error, raw, count)
    for part, exp in zip(parts, exps, strict=True):
        grads["W_dec"].index_add_(0, part, exp.t() @ grad_raw)
        grad_pre = (grad_raw @ W_dec[part].t()).mul_(exp)
        grad_bias = grad_pre.sum(0)
        grads["W_enc"].t().index_add_(0, part, grad_pre.t() @ centred)
        grads["b_enc"].index_add_(0, part, grad_bias)
        grads["b_dec"].sub_(grad_bias @ encoder.t()[part])
    return term


def _term(scale: Tensor, error: Tensor, raw: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The term's sum over some tokens, over ``count``, and its gradient by ``raw``.

    With ``w`` the scale of a token, error^2 w / (t + eps) is the factor: eps is on t as the released code has it, where
    the mean over D is taken at the end; w has that mean in it.
    """
    length = error.norm(dim=1, keepdim=True)
    inverse = torch.where(length > 0, 1 / length, 0)
    stretch = length / (EPSILON + 2 * raw.norm(dim=1, keepdim=True))
    difference = raw * stretch + error
    term = difference.square() * inverse
    factor = error.square() * scale / (term + EPSILON)
    grad_raw = difference * factor * inverse * stretch * (2 / count)
    return (factor * term).sum(1).sum(dtype=torch.float64) / count, grad_raw

"""Resampling: dead latents start again at tokens that are reconstructed badly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Parallel
from patchsae.training.variants.variant import Params, Variant

ENCODER_SCALE = 0.2
"""Norm of a restarted encoder column, as a share of the mean norm of those that are alive."""


@torch.no_grad()
def resample(
    variant: Variant,
    x: Tensor,
    params: Params,
    buffers: Mapping[str, Tensor],
    adam: pk.AdamState,
    dead: Tensor,
    generator: torch.Generator,
    parallel: Parallel,
) -> Tensor:
    """Restart dead latents at tokens of one batch, in place on ``params`` and ``adam`` (Bricken et al. 2023).

    A token is drawn with probability proportional to the square of its squared error, and no token twice: two latents
    that start alike stay alike. Its dictionary row becomes the unit vector of x - b_dec, its encoder column the same
    direction with 0.2 times the mean norm of the columns that are alive, everything else of the latent what it was at
    the start; its moments become 0.

    Args:
        x: this process's tokens, as for `Variant.step`.
        dead: bool ``[S]``, dead ones among this process's latents.
        generator: on the CPU, in the same state on all processes.

    Returns:
        bool ``[S]``: the latents that were restarted, whose dead counters should be too. With fewer tokens of non-zero
        error than dead latents it is the first ones; the others stay dead.
    """
    index = dead.nonzero().squeeze(1)
    errors = variant.squared_errors(x, params, buffers, parallel)
    per_shard = parallel.gather_latents(index.new_tensor([len(index)])).flatten()
    drawn = _draw(parallel.gather_data(errors), int(per_shard.sum()), generator)
    first = int(per_shard[: parallel.latent_rank].sum())
    mine = drawn[first : first + len(index)]
    restarted = torch.zeros_like(dead)
    index = index[: len(mine)]
    restarted[index] = True
    direction = _tokens(x.reshape(-1, x.shape[-1]), mine, parallel) - params["b_dec"].detach()
    direction /= direction.norm(dim=1, keepdim=True)
    _restart(variant, params, adam, index, direction, _mean_norm(params["W_enc"].detach(), ~dead, parallel))
    return restarted


def _draw(errors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` different tokens, int64, with probability proportional to the square of ``errors [N]``.

    The keys log(p) + Gumbel noise are in the order of successive draws without replacement (Efraimidis & Spirakis).
    """
    uniform = torch.rand(len(errors), generator=generator, dtype=torch.float64)
    weight = errors.double().cpu().square()
    keys = weight.log() - (-uniform.log()).log()
    order = keys.sort(descending=True, stable=True).indices
    return order[: min(count, int((weight > 0).sum()))].to(errors.device)


def _tokens(x: Tensor, chosen: Tensor, parallel: Parallel) -> Tensor:
    """The chosen tokens of the whole batch ``[n, D]``: each from the process that has it, zeros from the others."""
    lengths = parallel.gather_data(chosen.new_tensor([len(x)]))
    place = chosen - lengths[: parallel.data_rank].sum()
    here = (place >= 0) & (place < len(x))
    rows = x.new_zeros(len(chosen), x.shape[1])
    rows[here] = x[place[here]]
    parallel.sum_data_([rows])
    return rows


def _mean_norm(W_enc: Tensor, alive: Tensor, parallel: Parallel) -> Tensor:
    """Mean norm of the columns of latents that are alive, on all processes; of all columns where none is."""
    norms = W_enc.norm(dim=0).double()
    sums = torch.stack([norms[alive].sum(), alive.sum(), norms.sum(), norms.new_tensor(float(len(norms)))])
    parallel.sum_latents_([sums])
    return torch.where(sums[1] > 0, sums[0] / sums[1], sums[2] / sums[3]).to(W_enc.dtype)


def _restart(
    variant: Variant, params: Params, adam: pk.AdamState, index: Tensor, direction: Tensor, norm: Tensor
) -> None:
    params["W_dec"].index_copy_(0, index, direction)
    params["W_enc"].t().index_copy_(0, index, direction * (ENCODER_SCALE * norm))
    for name, value in variant.restart().items():
        params[name].index_fill_(0, index, value)
    for moments in (adam.exp_avg, adam.exp_avg_sq):
        for name in moments.keys() - {"b_dec"}:
            moment = moments[name].t() if name == "W_enc" else moments[name]
            moment.index_fill_(0, index, 0.0)

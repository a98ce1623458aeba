"""AuxK: the dead latents' own reconstruction of what the others miss (Gao et al., arXiv 2406.04093, appendix A.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchsae_kernels import checks, plain
from patchsae_kernels.api import decode, encode
from patchsae_kernels.step import parameter


def reconstruct_dead(
    x: Tensor,
    params: Mapping[str, Tensor],
    dead: Tensor,
    *,
    k: int,
    precision: str = "exact",
    budget_mb: float = 256,
) -> Tensor:
    """The k dead latents of each token with the largest pre-activations above 0, decoded without b_dec.

    The term itself is the caller's: ``(reconstruct_dead(...) - (x - y).detach()).square()``, normalised as it likes.
    Differentiable in all of ``params`` but x; rows of latents that are not dead get no gradient. Work and memory are in
    proportion to the dead latents: their rows are gathered, and a dense chunk has no other columns.

    Args:
        x: ``[N, D]`` float32.
        params: ``W_enc [D, S]``, ``b_enc [S]``, ``W_dec [S, D]``, ``b_dec [D]``.
        dead: bool ``[S]``; on a GPU their number is read.
        k: at most so many latents a token, >= 1. The other arguments are `encode`'s.

    Returns:
        ``[N, D]``; 0 without dead latents.
    """
    W_enc, b_enc, W_dec, b_dec = (parameter(params, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    checks.encoder_weights(W_enc, b_enc, b_dec)
    checks.shape("x", x, (-1, W_enc.shape[0]), f"[N, D] with D = {W_enc.shape[0]}")
    checks.shape("dead", dead, (W_enc.shape[1],), "[S]")
    checks.dtype("dead", dead, (torch.bool,))
    plain.whole_number("k", k, 1)
    latents = dead.nonzero().squeeze(1)
    if not latents.shape[0]:
        return x.new_zeros(x.shape)
    rows = W_enc.t().index_select(0, latents)
    z = encode(
        x,
        rows.t(),
        b_enc.index_select(0, latents),
        b_dec,
        activation="topk",
        k=min(k, latents.shape[0]),
        precision=precision,
        budget_mb=budget_mb,
    )
    return decode(z, W_dec.index_select(0, latents), b_dec.new_zeros(b_dec.shape))

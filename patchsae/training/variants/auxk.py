"""AuxK: the largest dead latents of a token reconstruct its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Parallel
from patchsae.training.variants.chunks import row_chunks
from patchsae.training.variants.error import Tokens
from patchsae.training.variants.select import topk
from patchsae.training.variants.variant import Params


@dataclass(frozen=True)
class AuxK:
    """``coefficient * |e - e_hat|^2``, e = stop(x - y), e_hat = topk(pre[dead]) W_dec[dead] (Gao et al. 2024, 2.4).

    The k largest positive pre-activations among the dead latents; squared errors count as in the variant's loss,
    without the weight of CLS. pre is (x - b_dec) W_enc + b_enc, whatever the variant makes of it. `pk.reconstruct_dead`
    is e_hat in one process; where processes share the latents, they have to agree on the k between encode and decode.

    Attributes:
        k: latents per token, or all dead ones where they are fewer.
        coefficient: of the term.
    """

    k: int
    coefficient: float

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
        leaves = {
            "W_enc": params["W_enc"].detach().t()[dead].requires_grad_(),  # [dead, D]
            "b_enc": params["b_enc"].detach()[dead].requires_grad_(),
            "W_dec": params["W_dec"].detach()[dead].requires_grad_(),
            "b_dec": params["b_dec"].detach().requires_grad_(),
        }
        weights = pk.prepare(leaves["W_enc"].t(), leaves["b_enc"], leaves["b_dec"])
        nothing = torch.zeros_like(params["b_dec"])
        total = torch.zeros((), dtype=torch.float64, device=error.device)
        for rows in row_chunks(len(error), error.shape[1], self.k, budget):
            latents = topk(tokens.x[rows], weights, self.k, parallel)
            of_error = parallel.sum_latents(pk.decode(latents, leaves["W_dec"], nothing))
            per_token = tokens.scale[rows] * (of_error + error[rows]).square().sum(1, keepdim=True)
            term = per_token.sum() * (self.coefficient / count)
            found = torch.autograd.grad(term, list(leaves.values()), allow_unused=True, materialize_grads=True)
            _add_to(grads, dead, dict(zip(leaves, found, strict=True)))
            total += per_token.detach().sum(dtype=torch.float64) * (self.coefficient / count)
        return total


def _add_to(grads: Mapping[str, Tensor], dead: Tensor, found: Mapping[str, Tensor]) -> None:
    """Adds gradients of dead latents, a row each, to those of all latents."""
    grads["W_enc"].t().index_add_(0, dead, found["W_enc"])
    grads["b_enc"].index_add_(0, dead, found["b_enc"])
    grads["W_dec"].index_add_(0, dead, found["W_dec"])
    grads["b_dec"].add_(found["b_dec"])

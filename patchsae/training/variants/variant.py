"""What all variants have in common: one step over a batch, in chunks of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.models.sae import SparseAutoencoder
from patchsae.parallel.base import Parallel
from patchsae.training.variants.error import ErrorScale, Tokens
from patchsae.training.variants.latents import Latents, count_active, decode

Params = Mapping[str, Tensor]


class Chunk(NamedTuple):
    """Some of a batch's tokens, encoded.

    Attributes:
        rows: which tokens.
        latents: what is decoded, differentiable in its values; an entry is active where its value is above 0.
        penalty: the sparsity term, coefficient included, summed over these tokens and over the latents of all
            processes; 0-d, differentiable.
    """

    rows: slice
    latents: Latents
    penalty: Tensor


class DeadTerm(Protocol):
    """A term of the loss that revives dead latents."""

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
        """The term of some tokens, coefficient included, 0-d float64; its gradients are added to ``grads``.

        Called by all processes that share the latents as soon as one of them has a dead latent.

        Args:
            error: ``[n, D]``, reconstruction - x of these tokens.
            dead: int64, the dead latents of this process, each once; maybe none.
            count: tokens of the whole batch; the term is a mean over them.
            budget: bytes for dense temporaries.
        """
        ...


@dataclass(frozen=True)
class Variant(ABC):
    """A kind of sparse autoencoder in training.

    The loss is the mean over tokens of the scaled squared error, plus the sparsity term, plus the dead-latent term.
    Parameters are those of `SparseAutoencoder` (W_enc [D, S] latent-major, b_enc [S], W_dec [S, D], b_dec [D]) and
    what the variant adds, each [S].

    Attributes:
        error: how squared errors count.
        dead_term: None for none.
        budget: bytes for what a chunk of tokens needs while it is worked on.
    """

    error: ErrorScale
    dead_term: DeadTerm | None
    budget: int = 256 * 2**20

    def parameters(self, sae: SparseAutoencoder) -> dict[str, Tensor]:
        """What is trained, by name: the tensors of ``sae`` themselves and new ones for what it does not have."""
        restart = {name: value for name, value in self.restart().items() if name != "b_enc"}
        return {**sae.parameters_by_name(), **{n: torch.full_like(sae.b_enc.detach(), v) for n, v in restart.items()}}

    def buffers(self, params: Params) -> dict[str, Tensor]:
        """What a step changes besides the parameters, and inference needs; saved with the state."""
        return {}

    def restart(self) -> dict[str, float]:
        """What each parameter [S] starts at, and starts again at when its latent is resampled."""
        return {"b_enc": 0.0}

    def step(
        self, x: Tensor, params: Params, buffers: Mapping[str, Tensor], dead: Tensor | None, parallel: Parallel
    ) -> tuple[pk.StepTerms, dict[str, Tensor]]:
        """Terms and gradients of one batch; ``buffers`` change in place, ``params`` do not.

        Args:
            x: this process's tokens, ``[B, T, D]`` (CLS first) or ``[N, D]``, in the dtype of the parameters.
            params: this process's latents.
            dead: bool ``[S]``, dead ones among them; None means none.

        Returns:
            terms: means over this process's tokens, over the latents of all processes; `fired` are this process's
                latents. `l1` is the sparsity term and `ghost` the dead-latent term, coefficients included.
            grads: of `total`, in the layout of the parameters. That of b_dec is a partial one where latents are
                divided: the gradient is its sum over the processes that share them.

        Raises:
            ValueError: x holds a NaN or an infinity.
        """
        tokens = self.error.of(x)
        count = max(1, len(tokens.x))
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        index = self._dead_somewhere(dead, parallel)
        sums = _Sums(params["b_enc"])
        grads: dict[str, Tensor] = {}
        for rows, latents, penalty in self._chunks(tokens, leaves, buffers, parallel):
            chunk = tokens[rows]
            errors = self._reconstructions(latents, leaves, parallel) - chunk.x.unsqueeze(1)
            per_token = chunk.scale * chunk.cls * errors.square().sum(dim=(1, 2)).unsqueeze(1)
            found = torch.autograd.grad(
                (per_token.sum() + penalty) / count, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            _add(grads, dict(zip(leaves, found, strict=True)))
            error = errors[:, -1].detach()
            sums.add(per_token.detach(), penalty.detach(), error, latents.detach())
            if index is not None and self.dead_term is not None:
                sums.dead += self.dead_term.add(chunk, error, index, params, grads, count, self.budget, parallel)
        return sums.terms(count, parallel), grads or {name: torch.zeros_like(p) for name, p in leaves.items()}

    def fit_encoder(self, batches: Sequence[Tensor], params: Params, parallel: Parallel) -> None:
        """Scale W_enc in place so that these batches are reconstructed with the least squared error.

        An encoder that is the decoder transposed counts the directions that latents share many times over: with S / 2
        latents active its reconstruction is about S / (2 D) times too long. Where latents scale with the encoder (no
        thresholds, b_enc = 0) the factor is exact. Batches that reconstruct to nothing leave W_enc as it is.
        """
        overlap, length = 0.0, 0.0
        with torch.no_grad():
            for tokens in map(self.error.of, batches):
                for rows, latents, _ in self._chunks(tokens, params, self.buffers(params), parallel):
                    found = self._reconstructions(latents, params, parallel)[:, -1] - params["b_dec"]
                    overlap += (found * (tokens.x[rows] - params["b_dec"])).sum(dtype=torch.float64).item()
                    length += found.square().sum(dtype=torch.float64).item()
            if overlap > 0:
                params["W_enc"].mul_(overlap / length)

    def prepared(self, params: Params) -> pk.PreparedWeights | None:
        """The packed encoder that steps use, for `pk.adam_step` to keep up to date; None where each packs its own."""
        return None

    def squared_errors(self, x: Tensor, params: Params, buffers: Mapping[str, Tensor], parallel: Parallel) -> Tensor:
        """Sum over D of (reconstruction - x)^2 of each of this process's tokens ``[N]``, without gradients."""
        tokens = self.error.of(x)
        kept = {name: buffer.clone() for name, buffer in buffers.items()}
        with torch.no_grad():
            parts = [
                (self._reconstructions(latents, params, parallel)[:, -1] - tokens.x[rows]).square().sum(1)
                for rows, latents, _ in self._chunks(tokens, params, kept, parallel)
            ]
        return torch.cat(parts) if parts else tokens.x.new_zeros(0)

    @abstractmethod
    def export(
        self, params: Params, buffers: Mapping[str, Tensor], metadata: Mapping[str, str | int | float]
    ) -> SparseAutoencoder:
        """The trained autoencoder, on the device of ``params``; its inference is `pk.encode`."""

    @abstractmethod
    def _chunks(
        self, tokens: Tokens, params: Params, buffers: Mapping[str, Tensor], parallel: Parallel
    ) -> Iterator[Chunk]:
        """The tokens in order, encoded; the same cuts on all processes that share the latents."""

    def _reconstructions(self, latents: Latents, params: Params, parallel: Parallel) -> Tensor:
        """All the reconstructions that the loss counts, ``[n, G, D]``; the last one is of all latents."""
        b_dec = params["b_dec"] / parallel.latent_size
        return parallel.sum_latents(decode(latents, params["W_dec"], b_dec)).unsqueeze(1)

    def _dead_somewhere(self, dead: Tensor | None, parallel: Parallel) -> Tensor | None:
        """The dead latents of this process (maybe none), int64; None where no process has any."""
        if dead is None or self.dead_term is None or not bool(parallel.gather_latents(dead.any().reshape(1)).any()):
            return None
        return dead.nonzero().squeeze(1)


class _Sums:
    """Totals over the chunks of a step, float64."""

    def __init__(self, like: Tensor) -> None:
        self.dtype = like.dtype
        self.mse, self.penalty, self.dead, self.active, self.squared_error = (
            torch.zeros((), dtype=torch.float64, device=like.device) for _ in range(5)
        )
        self.fired = torch.zeros(like.shape, dtype=torch.bool, device=like.device)

    def add(self, per_token: Tensor, penalty: Tensor, error: Tensor, latents: Latents) -> None:
        self.mse += per_token.sum(dtype=torch.float64)
        self.penalty += penalty
        self.squared_error += error.square().sum(1).sum(dtype=torch.float64)
        self.active += count_active(latents, self.fired)

    def terms(self, count: int, parallel: Parallel) -> pk.StepTerms:
        parallel.sum_latents_([self.active])
        mse, penalty = self.mse / count, self.penalty / count
        return pk.StepTerms(
            total=(mse + penalty + self.dead).to(self.dtype),
            mse=mse.to(self.dtype),
            l1=penalty.to(self.dtype),
            ghost=self.dead.to(self.dtype),
            l0=(self.active / count).to(self.dtype),
            squared_error=self.squared_error.to(self.dtype),
            fired=self.fired,
        )


def _add(grads: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, grad in found.items():
        grads[name] = grads[name].add_(grad) if name in grads else grad

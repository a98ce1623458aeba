"""One sparse autoencoder in training: where it starts, one optimiser step at a time, what it is in the end.

It is given tokens and knows neither images nor files, so that many of them can learn from one stream of tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

import patchsae_kernels as pk
from patchsae.activations import TokenBatch
from patchsae.errors import PatchsaeError
from patchsae.models.sae import SparseAutoencoder
from patchsae.models.sae_config import SAEConfig
from patchsae.parallel.base import Alone, Parallel, shard_dimension
from patchsae.training import metrics
from patchsae.training.checkpoint import TrainState
from patchsae.training.config import TrainConfig
from patchsae.training.dead import DeadCounter
from patchsae.training.init import start_sae
from patchsae.training.normalise import Normaliser
from patchsae.training.schedule import learning_rate
from patchsae.training.sizes import require_room
from patchsae.training.variants import make, resample
from patchsae_kernels.parts import products_as_said_by

_NOT_FINITE = "tokens that are not finite"


class NonFiniteLoss(PatchsaeError):
    """Tokens, the loss or a gradient of a step are NaN or infinite; the state is as it was before the step."""

    def __init__(self, step: int, ids: Sequence[str], what: str) -> None:
        where = f"step {step}" if step else "the start"
        super().__init__(f"{where} has {what}. Images of the step: {', '.join(ids)}")
        self.step = step
        self.ids = list(ids)


class Learner:
    """A sparse autoencoder in training on a stream of tokens.

    Args:
        width: D of the residual stream.
        device: where it learns; the tokens are there.
        parallel: the processes that train it together. All of them call every method, at the same time.
        metadata: of the autoencoder that `export` returns.
    """

    state: TrainState
    """Made by `start` or `blank`; `step` changes it in place."""
    normaliser: Normaliser

    def __init__(
        self,
        config: TrainConfig,
        width: int,
        device: torch.device | str,
        parallel: Parallel,
        metadata: Mapping[str, str | int | float],
    ) -> None:
        if config.batch_size < config.accumulate * parallel.data_size:
            raise ValueError(
                f"batch_size is {config.batch_size}; expected at least {config.accumulate * parallel.data_size}, an "
                f"image for each of {config.accumulate} micro-batches in {parallel.data_size} process(es)"
            )
        require_room(config, width, str(device), parallel.latent_size)
        self.config, self.width, self.device = config, width, torch.device(device)
        self.parallel, self.metadata = parallel, dict(metadata)
        self.variant = make(config)
        self._dead = torch.zeros(0, dtype=torch.bool)  # in the last step

    def start(self, first: Sequence[TokenBatch]) -> None:
        """Begin: normalisation, weights and b_dec from the first batches, whole on every process.

        Raises:
            NonFiniteLoss: tokens that are not finite; its step is 0.
        """
        raw = [self._trained_on(batch) for batch in first]
        ids = [id for batch in first for id in batch.ids]
        if not all(bool(tokens.isfinite().all()) for tokens in raw):
            raise NonFiniteLoss(0, ids, _NOT_FINITE)
        config = self.config
        normaliser = Normaliser.fit(raw, config.normalise)
        tokens = [normaliser.apply(batch) for batch in raw]
        sae = start_sae(tokens, expansion=config.expansion, seed=config.seed, start=config.start, init=config.init)
        if config.init != "independent":
            self.variant.fit_encoder(tokens, self.variant.parameters(sae), Alone(self.device))
        self._begin(sae, normaliser, position=config.batch_size * config.start_batches)

    def blank(self) -> None:
        """A state of the right shapes, for `checkpoint.restore` to fill."""
        sae = SparseAutoencoder(SAEConfig(self.width, self.config.expansion * self.width)).to(self.device)
        self._begin(sae, Normaliser.identity(self.config.normalise, self.width, self.device), position=0)

    def step(self, batch: TokenBatch) -> pk.StepTerms:
        """One optimiser step on this process's part of a batch; the terms are those of the whole batch.

        Loss and gradients of every micro-batch, clipping, dead counters, Adam with the gradient of W_dec freed of its
        component along the rows, rows to unit norm, resampling. Micro-batches and processes count by their tokens, so
        that the step is that of the whole batch in one process, up to rounding (a batchtopk selects among the tokens
        of all processes, but in each micro-batch by itself). A batch without any token changes the position alone.

        Raises:
            NonFiniteLoss: the state is as it was.
        """
        state, config = self.state, self.config
        x = self.normaliser.apply(self._trained_on(batch))
        tokens, images = self._totals(x, batch)
        self._dead = state.dead.mask()
        terms, grads = self._gradients(x, tokens, batch.ids)
        if tokens:
            if config.clip_gradient is not None:
                self._clip(grads, config.clip_gradient)
            state.dead.update(terms.fired)
            pk.adam_step(state.params, grads, state.adam, lr=self.rate, prepared=self.variant.prepared(state.params))
            state.step += 1
            state.images += images
            if config.dead_term == "resample" and state.step % config.resample_every == 0:
                self._resample(x)
        state.position = batch.next_start
        return terms

    @property
    def rate(self) -> float:
        """The learning rate of the step that comes next."""
        return learning_rate(self.state.step, lr=self.config.lr, warm_up_steps=self.config.warm_up_steps)

    def record(self, batch: TokenBatch, terms: pk.StepTerms) -> dict[str, float]:
        """What the step that was just taken on `batch` did, as plain numbers, about the whole batch.

        `dead` is the share of latents that counted as dead in it; `images` are those trained on so far; explained
        variance and normalised error are those of the normalised input.
        """
        state, config = self.state, self.config
        dead = torch.stack([self._dead.sum(), torch.ones_like(self._dead).sum()])
        self.parallel.sum_latents_([dead])
        x = self.normaliser.apply(self._trained_on(batch))
        return metrics.record(
            terms,
            metrics.total_variance(x, self.parallel),
            metrics.total_norm(x, self.parallel),
            dead=(dead[0].double() / dead[1]).item(),
            step=state.step,
            images=state.images,
            l1=config.l1 if config.variant == "relu" else 0.0,
            lr=learning_rate(state.step - 1, lr=config.lr, warm_up_steps=config.warm_up_steps),
        )

    def export(self) -> SparseAutoencoder | None:
        """The autoencoder as it is now, which takes the residual stream as it is; None but in the first process."""
        state, parallel = self.state, self.parallel
        params = {name: parallel.full(name, tensor) for name, tensor in state.params.items()}
        whole = {name: tensor for name, tensor in params.items() if tensor is not None}
        if not parallel.is_first:
            return None
        return self.normaliser.fold(self.variant.export(whole, state.buffers, self.metadata))

    def _trained_on(self, batch: TokenBatch) -> Tensor:
        """The tokens of a batch, or CLS alone [B, 1, D]."""
        if not self.config.cls_only:
            return batch.tokens
        if batch.tokens.dim() != 3:
            raise ValueError(f"the tokens have shape {tuple(batch.tokens.shape)}; cls_only needs images [B, T, D]")
        return batch.tokens[:, :1].contiguous()

    def _begin(self, sae: SparseAutoencoder, normaliser: Normaliser, position: int) -> None:
        self.normaliser = normaliser
        whole = self.variant.parameters(sae)
        params = {name: self._own(name, tensor) for name, tensor in whole.items()}
        constants = {} if normaliser.kind == "none" else {"shift": normaliser.shift, "scale": normaliser.scale}
        dead = DeadCounter(len(params["b_enc"]), self.config.dead_window, self.device)
        buffers = self.variant.buffers(params)
        self.state = TrainState(params, buffers, constants, pk.adam_init(params), dead, position=position)

    def _own(self, name: str, whole: Tensor) -> Tensor:
        """This process's latents of a parameter; the first process's values, so that nobody is a rounding away."""
        whole, dimension, parallel = whole.detach(), shard_dimension(name, whole), self.parallel
        if parallel.data_size * parallel.latent_size == 1:
            return whole
        own = torch.empty_like(whole)
        if dimension is not None:
            latents = parallel.latents(whole.shape[dimension])
            own = torch.empty_like(whole.movedim(dimension, 0)[latents]).movedim(0, dimension)
        parallel.fill_(name, own, whole if parallel.is_first else None)
        return own

    def _totals(self, x: Tensor, batch: TokenBatch) -> tuple[int, int]:
        """Tokens and images of the whole batch. Raises NonFiniteLoss where any token is not finite."""
        counts = torch.tensor([x.shape[:-1].numel(), batch.images, 0], device=self.device)
        counts[2] = x.isfinite().logical_not_().any()
        self.parallel.sum_data_([counts])
        tokens, images, broken = counts.tolist()
        if broken:
            self._refuse(batch.ids, _NOT_FINITE)
        return tokens, images

    def _gradients(self, x: Tensor, tokens: int, ids: Sequence[str]) -> tuple[pk.StepTerms, dict[str, Tensor]]:
        """Terms and gradients of the whole batch of so many tokens. Raises NonFiniteLoss."""
        state, parallel = self.state, self.parallel
        before = {name: buffer.clone() for name, buffer in state.buffers.items()}
        sums = _Sums()
        for part in x.tensor_split(self.config.accumulate):
            # an empty part of a batch takes its place where processes wait for one another
            if len(part) or parallel.data_size * parallel.latent_size > 1:
                with products_as_said_by("exact", self.device):
                    terms, grads = self.variant.step(part, state.params, state.buffers, self._dead, parallel)
                sums.add(terms, grads, part.shape[:-1].numel() / max(tokens, 1))
        values = torch.stack(sums.values)
        parallel.sum_data_([values, *sums.grads.values()])
        parallel.sum_latents_([sums.grads["b_dec"]])
        # a finite loss can have gradients that are not, and one such step would spoil the next checkpoint
        finite = torch.stack([values[0], *(grad.sum() for grad in sums.grads.values())]).isfinite().all()
        total, mse, l1, ghost, l0, squared_error = values.unbind()
        terms = pk.StepTerms(total, mse, l1, ghost, l0, squared_error, parallel.any_data(sums.fired))
        if not parallel.all_ok(bool(finite)):
            for name, buffer in state.buffers.items():
                buffer.copy_(before[name])
            shown = ", ".join(f"{name} {getattr(terms, name).item():g}" for name in ("mse", "l1", "ghost"))
            self._refuse(ids, f"a loss or a gradient that is not finite ({shown})")
        return terms, sums.grads

    def _refuse(self, ids: Sequence[str], what: str) -> NoReturn:
        """Raises NonFiniteLoss on all processes; on the first one with the images of all."""
        everybody = self.parallel.gather(list(ids)) or [list(ids)]
        raise NonFiniteLoss(self.state.step + 1, list(dict.fromkeys(itertools.chain(*everybody))), what)

    def _clip(self, grads: Mapping[str, Tensor], largest: float) -> None:
        """Scale all gradients so that their norm, over the latents of all processes, is at most `largest`."""
        squares = {name: torch.linalg.vector_norm(g, dtype=torch.float64).square() for name, g in grads.items()}
        own = torch.stack([square for name, square in squares.items() if name != "b_dec"]).sum()
        self.parallel.sum_latents_([own])
        factor = largest / (own + squares["b_dec"]).sqrt()
        for grad in grads.values():
            grad.mul_(factor.clamp(max=1.0).to(grad.dtype))

    def _resample(self, x: Tensor) -> None:
        state = self.state
        drawn = np.random.SeedSequence([self.config.seed, state.step]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(drawn[0]))
        restarted = resample(
            self.variant, x, state.params, state.buffers, state.adam, state.dead.mask(), generator, self.parallel
        )
        state.dead.reset(restarted)


class _Sums:
    """Terms and gradients of micro-batches, weighted by their share of the tokens."""

    values: list[Tensor]
    """total, mse, l1, ghost, l0, squared_error."""
    fired: Tensor
    grads: dict[str, Tensor]

    def __init__(self) -> None:
        self.grads = {}

    def add(self, terms: pk.StepTerms, grads: Mapping[str, Tensor], share: float) -> None:
        *means, squared_error, fired = terms
        values = [*(mean * share for mean in means), squared_error]
        if not self.grads:
            self.values, self.fired = values, fired
            self.grads = {name: grad if share == 1 else grad.mul_(share) for name, grad in grads.items()}
            return
        self.values = [a + b for a, b in zip(self.values, values, strict=True)]
        self.fired = self.fired | fired
        for name, grad in grads.items():
            self.grads[name].add_(grad, alpha=share)

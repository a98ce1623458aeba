"""A whole training step as one CUDA graph: loss, gradients and optimiser without a host read between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from patchsae_kernels import checks, servers
from patchsae_kernels.arithmetic import as_said_by
from patchsae_kernels.calls import AdamCall, StepCall
from patchsae_kernels.prepare import version
from patchsae_kernels.step import PARAMETERS, AdamState, StepTerms, adam_step, parameter, sae_step

WARM_UPS = 2
"""Steps that change nothing before the recording: kernels are compiled, and the libraries get their workspaces."""


class StepGraph:
    """Steps of a run that has become sparse, replayed from a recording with room for a fixed number of active latents.

    A step that does not fit (more active or dead latents than there is room for, x or the result not finite) changes
    nothing on the device, and is then taken by `sae_step` and `adam_step`. Parameters and moments are the caller's own
    tensors, changed in place: their values may change between two steps, nobody may replace the tensors.

    Where Triton's interpreter runs the kernels nothing is recorded, and every step runs what would have been.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        state: AdamState,
        *,
        shape: tuple[int, int, int],
        capacity: int,
        l1: float,
        dead_capacity: int = 0,
        cls_weight: float = 1.0,
        precision: str = "exact",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        unit_norm: bool = True,
        budget_mb: float = 256,
    ) -> None:
        """Allocate what the recording reads; it is made by the first step.

        Args:
            shape: ``(B, T, D)`` of every batch.
            capacity: places for the active latents of a batch, about 64 bytes each.
            dead_capacity: places for dead latents in the ghost term; with 0 there is no such term.
            The others are `sae_step`'s and `adam_step`'s.

        Raises:
            ValueError: the GPU's kernels do not serve these tensors, or an argument does not fit.
        """
        self.params, self.state = params, state
        W_enc, b_enc, W_dec, b_dec = self.weights = tuple(parameter(params, name).detach() for name in PARAMETERS)
        checks.encoder_weights(W_enc, b_enc, b_dec)
        checks.option("precision", precision, checks.PRECISIONS)
        if len(shape) != 3 or shape[2] != W_enc.shape[0]:
            raise ValueError(f"shape is {shape}; expected (B, T, D) with D = {W_enc.shape[0]}")
        if capacity < 0 or dead_capacity < 0:
            raise ValueError(f"capacity is {capacity} and dead_capacity {dead_capacity}; expected numbers >= 0")
        self.x = W_enc.new_zeros(shape)
        self.precision, self.budget_mb = precision, budget_mb
        tokens = self.x.view(-1, shape[2])
        settings = (l1, cls_weight, shape[1], checks.budget_bytes(budget_mb), precision)
        self.call = StepCall(tokens, W_enc, b_enc, W_dec, b_dec, None, *settings)
        if not _is_served(self.call):
            raise ValueError(f"steps of {W_enc.dtype} on {W_enc.device} are not recorded; expected float32 on a GPU")
        self.dead = torch.zeros_like(b_enc, dtype=torch.bool)
        self.controls = torch.zeros(len(PARAMETERS), 4, dtype=torch.int32, device=W_enc.device)
        self.capacity, self.dead_capacity = capacity, dead_capacity
        most_dead = dead_capacity if dead_capacity else b_enc.shape[0]
        self.limits = torch.tensor([capacity, 0, 0, most_dead], dtype=torch.int64, device=W_enc.device)
        self.betas, self.eps, self.unit_norm = betas, eps, unit_norm
        self.packed = self._packed_in_place()
        self.call = replace(self.call, packed=self.packed)
        self.versions = self._versions()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.results: tuple[StepTerms, Tensor] | None = None

    def step(self, x: Tensor, dead: Tensor | None = None, *, lr: float) -> StepTerms:
        """One step on ``x`` ``[B, T, D]`` float32 with the dead latents ``dead`` bool ``[S]``. Reads the device once.

        On a GPU the terms are the recording's own: the next step overwrites them.

        Raises:
            ValueError: x holds a NaN or an infinity.
            FloatingPointError: the loss or a gradient is not finite; nothing has changed.
        """
        checks.shape("x", x, tuple(self.x.shape), "[B, T, D]")
        if self.packed is not None and self.versions != self._versions():
            fresh = servers.pack(self.weights[0], self.weights[1], self.precision)
            for held, new in zip(self.packed, fresh, strict=True):
                held.copy_(new)
        self.x.copy_(x)
        if dead is not None:
            self.dead.copy_(dead)
        else:
            self.dead.zero_()
        if self.x.is_cuda and self.graph is None:
            self._record()
        self.controls.copy_(self._controls(lr))
        terms, done = self._replay()
        if not bool(done):
            return self._step_apart(x, dead, lr)
        self.state.step += 1
        for name, weight in zip(PARAMETERS, self.weights, strict=True):  # a replay does not tell autograd what it wrote
            for changed in (weight, self.state.exp_avg[name], self.state.exp_avg_sq[name]):
                torch.autograd.graph.increment_version(changed)
        self.versions = self._versions()
        return terms

    def _step_apart(self, x: Tensor, dead: Tensor | None, lr: float) -> StepTerms:
        terms, grads = sae_step(
            x,
            self.params,
            l1=self.call.l1,
            dead=dead,
            ghost=self.dead_capacity > 0,
            cls_weight=self.call.cls_weight,
            precision=self.precision,
            budget_mb=self.budget_mb,
        )
        if not bool(_finite(terms, grads)):
            raise FloatingPointError(f"the loss or a gradient of step {self.state.step + 1} is not finite")
        adam_step(self.params, grads, self.state, lr=lr, betas=self.betas, eps=self.eps, unit_norm=self.unit_norm)
        return terms

    def _replay(self) -> tuple[StepTerms, Tensor]:
        if self.graph is None:
            return self._run()
        self.graph.replay()
        assert self.results is not None
        return self.results

    def _record(self) -> None:
        """Warm up on a stream of its own, as a capture asks, with controls of zeros; then record."""
        self.controls.zero_()
        side = torch.cuda.Stream(self.x.device)
        side.wait_stream(torch.cuda.current_stream(self.x.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream(self.x.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = self._run()

    def _run(self) -> tuple[StepTerms, Tensor]:
        """What is recorded: terms, and whether parameters and moments have changed. Nothing here reads the device."""
        from patchsae_kernels.triton import adam, pack, step

        packed = None if self.packed is None else pack.Packed(*self.packed)
        with torch.no_grad(), as_said_by(self.precision, self.x.device), torch.cuda.device_of(self.x):
            (*terms, dW_enc, db_enc, dW_dec, db_dec), needed = step.bounded_step(
                self.call, self.dead, self.capacity, self.dead_capacity
            )
            found = StepTerms(*terms)
            grads = dict(zip(PARAMETERS, (dW_enc, db_enc, dW_dec, db_dec), strict=True))
            done = _finite(found, grads) & (needed <= self.limits).all()
            controls = self.controls.clone()
            controls[:, 2] *= done
            for number, name in enumerate(PARAMETERS):
                call = self._adam_call(number, name, grads[name])
                assert adam.serves(call), "a step is captured only of parameters that are served"
                adam.adam_with(adam.Extras(controls[number], packed if name == "W_enc" else None), call)
            if packed is not None:
                pack.pack_biases(packed, self.weights[1])
        return found, done

    def _adam_call(self, number: int, name: str, grad: Tensor) -> AdamCall:
        """Of one parameter; step and rate come from the controls."""
        moments = self.state.exp_avg[name], self.state.exp_avg_sq[name]
        constants = (1, 0.0, *self.betas, self.eps)
        return AdamCall(self.weights[number], grad, *(*moments, *constants), self.unit_norm and name == "W_dec")

    def _controls(self, lr: float) -> Tensor:
        from patchsae_kernels.triton.adam import control_of

        step = self.state.step + 1
        return torch.stack([control_of(step, lr, *self.betas, 4 * step + i) for i in range(len(PARAMETERS))])

    def _packed_in_place(self) -> list[Tensor] | None:
        """Packed weights that the optimiser keeps up to date; None where their rows are not W_enc itself."""
        if self.precision == "fp32":
            return None
        from patchsae_kernels.triton.pack import Packed

        packed = servers.pack(self.weights[0], self.weights[1], self.precision)
        return packed if Packed(*packed).rows.data_ptr() == self.weights[0].data_ptr() else None

    def _versions(self) -> tuple[object, ...]:
        return tuple(version(weight) for weight in self.weights)


def _is_served(call: StepCall) -> bool:
    if not servers.has_triton(call.x.device):
        return False
    from patchsae_kernels.triton import step

    return step.serves(call)


def _finite(terms: StepTerms, grads: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([terms.total, *(g.sum() for g in grads.values())]).isfinite().all()

"""The training step on a GPU: one exact encode and work in proportion to the non-zeros, or dense products in chunks.

The equations are those of `patchsae_kernels.reference_training`; how the non-zeros are summed up is said in
`patchsae_kernels.triton.backward`. By arithmetic, at 25,216 tokens, D 768, S 49,152 and L0 149 on an H200: packing the
weights 0.1 ms, encode 3.3, decode 2.1, sort 0.15, backward 4.3, passes over the tokens 0.15: 10 ms. The dense step has
five products of 1.9 TFLOP, 190 ms in float32 (27 in TF32), its passes over the latents 5 ms, and re-reading the weights
and gradients for every chunk 5 ms.

Host reads: one before the choice between the two (share of active latents, whether x is finite), one in each encode
(its sizes), none in the dense step. A choice that keeps no state needs no hysteresis: where the two cost the same, it
does not matter which one runs, and they agree to rounding.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from patchsae_kernels import checks, reference_training
from patchsae_kernels.triton import dense, tuning
from patchsae_kernels.triton.backward import gradients, takes_backward
from patchsae_kernels.triton.decode import decode_with_losses
from patchsae_kernels.triton.encode import encode
from patchsae_kernels.triton.ghost import Rows, add_ghost
from patchsae_kernels.triton.latent_major import sort_by_latent
from patchsae_kernels.triton.pack import pack

SAMPLE_TOKENS, SAMPLE_LATENTS = 64, 4096
"""What the share is estimated from."""
BYTES_PER_ENTRY = 64
"""Values and indices, twice while encode gives back what it did not need; keys, tokens, places and values by latent;
the memory of the sort; partial sums."""
BYTES_PER_LATENT = 5
"""Of one token in the dense step: a pre-activation, latent or gradient, and whether it is active."""
TILE = 128


def sae_step(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    dead: Tensor | None,
    l1: float,
    cls_weight: float,
    tokens_per_image: int,
    budget: int,
) -> list[Tensor]:
    """See `patchsae_kernels.reference_training.sae_step`, which serves other dtypes and very wide tokens.

    Entries and the reconstruction of a chunk of tokens stay within ``budget`` bytes each, as do dense latents. A
    parameter that is not a number reaches the total, without a read of the device.

    Raises:
        ValueError: x holds a NaN or an infinity.
    """
    arguments = (x, W_enc, b_enc, W_dec, b_dec, dead, l1, cls_weight, tokens_per_image, budget)
    if not takes_backward(W_enc.shape[0], x, *arguments[:5]) or W_enc.shape[1] == 0:
        return reference_training.sae_step(*arguments)
    step = Step(*arguments)
    share = _share_of_active(step)
    if share > tuning.dense_from():
        for rows in dense_chunks(x.shape[0], W_enc.shape[1], budget):
            step.add_dense(rows)
    else:
        packed = list(pack(W_enc, b_enc, "exact"))
        for rows in sparse_chunks(x.shape[0], W_enc.shape[0], share * W_enc.shape[1], budget):
            csr = encode(step.x[rows], W_enc, b_enc, b_dec, packed, None, "relu", 0, "exact", budget)
            step.add_sparse(rows, *csr)
    return step.finish(W_enc, W_dec)


class Step:
    """The sums of one step; chunks of tokens are added in order. Nothing here reads the device."""

    def __init__(
        self,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        dead: Tensor | None,
        l1: float,
        cls_weight: float,
        tokens_per_image: int,
        budget: int,
    ) -> None:
        self.x, self.b_dec, self.dead, self.budget = x.contiguous(), b_dec.contiguous(), dead, budget
        self.w = Rows(W_enc.t().contiguous(), b_enc.contiguous(), W_dec.contiguous())
        self.tokens = max(x.shape[0], 1)
        self.elements, self.l1 = self.tokens * x.shape[1], l1
        self.norms = torch.linalg.vector_norm(self.x, dim=1)
        self.weights = torch.ones_like(self.norms)
        if tokens_per_image:
            self.weights[::tokens_per_image] = cls_weight
        # The gradient by a token's reconstruction is its error times this.
        self.scale = self.weights * 2 / (self.norms * self.elements)
        self.grads = Rows(*(torch.zeros_like(p) for p in self.w))
        self.grad_b_dec = torch.zeros_like(self.b_dec, dtype=torch.float64)
        self.fired = torch.zeros_like(self.w.b_enc, dtype=torch.uint8)
        self.totals = self.norms.new_zeros(5, dtype=torch.float64)

    def add_sparse(self, rows: slice, values: Tensor, indices: Tensor, indptr: Tensor) -> None:
        """Tokens with their latents, which a CSR of fixed capacity may hold as well as an exact one."""
        x, scale, w = self.x[rows], self.scale[rows], self.w
        y, squared_error, latents, active = decode_with_losses(values, indices, indptr, w.dec, self.b_dec, x)
        error = y.sub_(x)
        by_latent = sort_by_latent(indices, indptr, w.b_enc.shape[0])
        gradients(
            by_latent,
            x.shape[1],
            g=error,
            scale=scale,
            W=w.dec,
            constant=self.l1 / self.tokens,
            values=values[by_latent.order],
            sum_g=self.grads.dec,
            x=x,
            shift=self.b_dec,
            sum_x=self.grads.enc,
            sum_dots=self.grads.b_enc,
            accumulate=rows.start > 0,
        )
        self.fired |= by_latent.indptr.diff() > 0
        self._add_terms(rows, error, squared_error, latents, active)

    def add_dense(self, rows: slice) -> None:
        x, w, grads = self.x[rows], self.w, self.grads
        centred = x - self.b_dec
        h = torch.addmm(w.b_enc, centred, w.enc.t())
        gate = torch.empty_like(h, dtype=torch.uint8)
        latents, active = dense.relu_(h, gate, self.fired)
        error = torch.addmm(self.b_dec, h, w.dec).sub_(x)
        g = error * self.scale[rows, None]
        grads.dec.addmm_(h.t(), g)
        grad_pre = torch.mm(g, w.dec.t(), out=h)  # h is not needed any more: its memory is
        dense.gate_(grad_pre, gate, self.l1 / self.tokens, grads.b_enc)
        grads.enc.addmm_(grad_pre.t(), centred)
        del h, grad_pre, gate  # before the ghost term takes as much
        self._add_terms(rows, error, error.square().sum(1), latents, active)

    def finish(self, W_enc: Tensor, W_dec: Tensor) -> list[Tensor]:
        """What `sae_step` returns; gradients in the layout of ``W_enc`` and ``W_dec``."""
        grad_b_dec = (self.grad_b_dec - torch.mv(self.w.enc.t(), self.grads.b_enc)).to(torch.float32)
        per_token = self.totals / self.tokens
        mse, sparsity, ghost = per_token[0] / self.x.shape[1], self.l1 * per_token[1], per_token[4] / self.x.shape[1]
        # 0, or NaN where a parameter is not a number though no active latent shows it.
        unseen = 0 * (self.w.b_enc.sum() + grad_b_dec.sum())
        scalars = (mse + sparsity + ghost + unseen, mse, sparsity, ghost, per_token[2], self.totals[3])
        enc, dec = _in_layout_of(W_enc, self.grads.enc.t()), _in_layout_of(W_dec, self.grads.dec)
        terms = [value.to(torch.float32) for value in scalars]
        return [*terms, self.fired > 0, enc, self.grads.b_enc, dec, grad_b_dec]

    def _add_terms(self, rows: slice, error: Tensor, squared_error: Tensor, latents: Tensor, active: Tensor) -> None:
        """The totals, the gradient of b_dec but for its way through the encoder, and the ghost term with its own."""
        weighted = squared_error * self.weights[rows] / self.norms[rows]
        ghost = torch.zeros_like(self.totals[0])
        if self.dead is not None:
            ghost = add_ghost(
                self.x[rows], error, self.dead, self.w, self.b_dec, self.grads, self.elements, self.budget
            )
        sums = [t.sum(dtype=torch.float64) for t in (weighted, latents, active, squared_error)]
        self.totals += torch.stack([*sums, ghost])
        self.grad_b_dec += torch.mv(error.t(), self.scale[rows])


def sparse_chunks(tokens: int, width: int, active: float, budget: int) -> list[slice]:
    """Equal chunks whose entries, at ``active`` a token, and whose reconstruction have room in the budget each."""
    most = min(budget / (8 * width), budget / (BYTES_PER_ENTRY * max(active, 1.0)))
    return _equal(tokens, max(1, int(most)))


def dense_chunks(tokens: int, latents: int, budget: int) -> list[slice]:
    """Equal chunks, if possible of whole tiles of the products, whose dense latents have room in the budget."""
    most = max(1, budget // (BYTES_PER_LATENT * latents))
    if most < TILE:
        return _equal(tokens, most)
    tiles = _equal(max(1, triton.cdiv(tokens, TILE)), most // TILE)
    return [slice(tile.start * TILE, min(tile.stop * TILE, tokens)) for tile in tiles]


def _equal(count: int, most: int) -> list[slice]:
    """At least one; all but the last of the same length."""
    size = max(1, triton.cdiv(count, max(1, triton.cdiv(count, most))))
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def _share_of_active(step: Step) -> float:
    """About how large a share of the latents is active, from some tokens and latents, evenly spaced. Reads the device.

    Infinite where b_dec is not finite: the dense step shows that in its results, encode would blame the tokens.

    Raises:
        ValueError: x holds a NaN or an infinity.
    """
    x, w = step.x, step.w
    tokens = x[:: max(1, x.shape[0] // SAMPLE_TOKENS)] - step.b_dec
    every = slice(None, None, max(1, w.b_enc.shape[0] // SAMPLE_LATENTS))
    pre = torch.addmm(w.b_enc[every], tokens, w.enc[every].t())
    finite = [t.isfinite().all() for t in (step.norms, step.b_dec)]
    active, finite_x, finite_b_dec = torch.stack([(pre > 0).sum(), *finite]).tolist()
    if not finite_x:
        checks.finite_rows("x", x)  # passes where only the square of an element leaves the range
    return active / max(1, pre.numel()) if finite_b_dec else float("inf")


def _in_layout_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)

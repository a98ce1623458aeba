"""The training step on the CPU: one exact encode, then work in proportion to the non-zeros.

The equations are those of `patchsae_kernels.reference.training`. With g_n the gradient of the loss by the
reconstruction of token n, every non-zero p of token n and latent s has dz_p = <g_n, W_dec[s]> + l1 / N, and one
traversal of the non-zeros sorted by latent gives dW_dec[s] = sum h_p g_n, dW_enc[:, s] = sum dz_p (x_n - b_dec) and
db_enc[s] = sum dz_p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import checks, reference
from patchsae_kernels.calls import StepCall
from patchsae_kernels.cpu.encode import pack
from patchsae_kernels.cpu.extension import native
from patchsae_kernels.cpu.ghost import Rows, add_ghost
from patchsae_kernels.cpu.latent_major import TOKEN_LIMIT, add_column_sums, gradients, sort_by_latent
from patchsae_kernels.cpu.memory import on_large_pages

DENSE_FROM = 1 / 8
"""Share of active latents from which dense products are taken.

At 394 tokens of the paper's size on two AMD EPYC cores, shared with others, the dense step took 1.3 to 2.4 times as
long at a share of 0.06, 1.3 to 1.7 times at 0.12, and about as long (1.07 times) at 0.18; both with their encode.
torch's float32 product reached about 60 GFLOP/s there; where it is faster, the crossover lies lower.
"""
SAMPLE_TOKENS, SAMPLE_LATENTS = 64, 4096
"""What the share is estimated from: a three-hundredth of the products of an encode at the paper's size."""
BYTES_PER_ENTRY = 48
"""Values and indices by token, then places, tokens, values and dots by latent, with a margin for the estimate."""
PARTIAL_SUMS = 64
"""Parts into which the latents are cut for W_enc @ db_enc, whatever the number of threads."""


def serves(call: StepCall) -> bool:
    wide = all(t.dtype == torch.float32 for t in (call.x, *call.weights)) and call.precision != "bf16"
    return wide and call.x.shape[0] <= TOKEN_LIMIT and 0 not in call.W_enc.shape


def sae_step(call: StepCall) -> list[Tensor]:
    """See `patchsae_kernels.reference.sae_step`.

    That one also takes batches with many active latents, and what ends in a number that is not finite, so that a NaN in
    a parameter reaches the same places.

    Raises:
        ValueError: x holds a NaN or an infinity.
    """
    x, W_enc, W_dec = call.x, call.W_enc, call.W_dec
    checks.finite_rows("x", x)
    w = Rows(W_enc.t().contiguous(), call.b_enc.contiguous(), W_dec.contiguous())
    try:
        share = _share_of_active(x, w, call.b_dec)
        if call.path == "dense" or (call.path != "sparse" and share > DENSE_FROM):
            return reference.sae_step(call)
        step = _SparseStep(call, w)
        entries = int(BYTES_PER_ENTRY * max(share, 1e-3) * W_enc.shape[1])
        rows = max(1, call.budget // (4 * x.shape[1] * 4 + entries))
        for start in range(0, max(x.shape[0], 1), rows):
            step.add(slice(start, min(start + rows, x.shape[0])))
    except checks.NotFiniteError:  # of a parameter, or of an overflow: x has been looked at
        return reference.sae_step(call)
    terms, grads, grad_b_dec = step.finish()
    if not bool(torch.stack([terms[0], grad_b_dec.sum(), call.b_enc.sum()]).isfinite().all()):
        return reference.sae_step(call)
    return [*terms, _in_layout_of(W_enc, grads.enc.t()), grads.b_enc, _in_layout_of(W_dec, grads.dec), grad_b_dec]


class _SparseStep:
    """The sums of one step; chunks of tokens are added in order, and where they are cut changes no bit."""

    def __init__(self, call: StepCall, w: Rows) -> None:
        x = call.x
        self.call, self.w = call, w
        self.packed = pack(w.enc.t(), w.b_enc, "exact")
        self.tokens = max(x.shape[0], 1)
        self.elements = self.tokens * x.shape[1]
        self.grads = Rows(*(on_large_pages(torch.empty_like(p)) for p in w))
        self.grad_b_dec = x.new_zeros(x.shape[1], dtype=torch.float64)
        self.totals = x.new_zeros(3, dtype=torch.float64)  # weighted squared error over norm, squared error, latents
        self.ghost = x.new_zeros((), dtype=torch.float64)
        self.active = x.new_zeros(w.b_enc.shape[0], dtype=torch.int64)

    def add(self, rows: slice) -> None:
        call, w = self.call, self.w
        x = call.x[rows].contiguous()
        csr = torch.ops.patchsae.encode(
            x, w.enc.t(), w.b_enc, call.b_dec, self.packed, None, "relu", 0, "exact", call.budget
        )
        values, indices, indptr = csr
        y = torch.ops.patchsae.decode(*csr, w.dec, call.b_dec)
        g = self._residuals(values, indptr, x, y, rows.start)
        centred = x - call.b_dec
        by_latent = sort_by_latent(indices, indptr, w.b_enc.shape[0])
        gradients(
            by_latent,
            x.shape[1],
            g=g,
            W=w.dec,
            constant=call.l1 / self.tokens,
            dots=torch.empty_like(values),
            values=values[by_latent.order],
            sum_g=self.grads.dec,
            x=centred,
            sum_x=self.grads.enc,
            sum_dots=self.grads.b_enc,
            accumulate=rows.start > 0,
        )
        add_column_sums(self.grad_b_dec, g)
        self.active += by_latent.indptr.diff()
        if call.dead is not None:
            error = y.sub_(x)
            self.ghost += add_ghost(x, centred, error, call.dead, w, self.grads, self.elements, call.budget)

    def finish(self) -> tuple[list[Tensor], Rows, Tensor]:
        """The terms and ``fired``; gradients by latent; the gradient of b_dec."""
        weighted, squared_error, latents = self.totals
        mse, sparsity, ghost = (
            weighted / self.elements,
            self.call.l1 * latents / self.tokens,
            self.ghost / self.elements,
        )
        l0 = self.active.sum().double() / self.tokens
        scalars = (mse + sparsity + ghost, mse, sparsity, ghost, l0, squared_error)
        add_column_sums(self.grad_b_dec, self._through_encoder(), -1.0)
        terms = [value.to(torch.float32) for value in scalars]
        return [*terms, self.active > 0], self.grads, self.grad_b_dec.to(torch.float32)

    def _residuals(self, values: Tensor, indptr: Tensor, x: Tensor, y: Tensor, first: int) -> Tensor:
        """The gradient of the loss by y ``[n, D]``; adds to the totals."""
        g = torch.empty_like(x)
        native.residuals(
            values.data_ptr(),
            indptr.data_ptr(),
            x.shape[0],
            x.data_ptr(),
            y.data_ptr(),
            x.shape[1],
            first,
            self.call.tokens_per_image,
            self.call.cls_weight,
            self.elements,
            g.data_ptr(),
            self.totals.data_ptr(),
            torch.get_num_threads(),
        )
        return g

    def _through_encoder(self) -> Tensor:
        """Rows that add up to W_enc @ db_enc: a decode of the latents in parts, each with its entries of db_enc."""
        latents = self.w.b_enc.shape[0]
        here = self.call.x.device
        ends = torch.arange(PARTIAL_SUMS + 1, dtype=torch.int64, device=here) * latents // PARTIAL_SUMS
        indices = torch.arange(latents, dtype=torch.int32, device=here)
        nothing = torch.zeros_like(self.call.b_dec)
        rows: Tensor = torch.ops.patchsae.decode(self.grads.b_enc, indices, ends, self.w.enc, nothing)
        return rows


def _share_of_active(x: Tensor, w: Rows, b_dec: Tensor) -> float:
    """About how large a share of the latents is active, from some tokens and some latents, evenly spaced."""
    tokens = x[:: max(1, x.shape[0] // SAMPLE_TOKENS)]
    every = slice(None, None, max(1, w.b_enc.shape[0] // SAMPLE_LATENTS))
    enc, b_enc = w.enc[every].contiguous(), w.b_enc[every].contiguous()
    values: Tensor = torch.ops.patchsae.encode(tokens, enc.t(), b_enc, b_dec, [], None, "relu", 0, "fp32", 2**28)[0]
    return values.shape[0] / max(1, tokens.shape[0] * b_enc.shape[0])


def _in_layout_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)

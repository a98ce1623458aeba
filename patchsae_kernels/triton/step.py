"""The training step on a GPU: one encode and work in proportion to the non-zeros, or dense products in chunks.

The equations are those of `patchsae_kernels.reference.training`; how the non-zeros are summed up is said in
`patchsae_kernels.triton.backward`. By arithmetic (benches/results/gpu-model.md), at 25,216 tokens, D 768, S 49,152 and
L0 149 on an H200: packing the weights 0.1 ms, encode 5.7, decode 2.4, sort 0.15, backward 5.3, passes over the tokens
0.35: 14 ms. With bfloat16 products 8.4 ms: the encode takes 3.1, and every gathered row has half the bytes. The dense
step has five products of 1.9 TFLOP, 190 ms in float32 (27 in TF32, 12 in bfloat16), its passes over the latents 5 ms,
and re-reading the weights and gradients for every chunk 5 ms.

Host reads: one before the choice between the two (share of active latents, whether x is finite), one in each encode
(its sizes), none else in the dense step. With a `patchsae_kernels.StepChoice` the running share is read instead of a
sample. `bounded_step` reads nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
import triton
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.calls import BoundedEncodeCall, DecodeCall, StepCall
from patchsae_kernels.triton import dense, tuning
from patchsae_kernels.triton.backward import WIDEST, gradients
from patchsae_kernels.triton.decode import decode_with_losses
from patchsae_kernels.triton.encode import encode_anything, encode_bounded
from patchsae_kernels.triton.ghost import Dead, Rows, add_ghost
from patchsae_kernels.triton.latent_major import TOKEN_LIMIT, sort_by_latent
from patchsae_kernels.triton.pack import pack
from patchsae_kernels.triton.widening import add_product, product

SAMPLE_TOKENS, SAMPLE_LATENTS = 64, 4096
"""What the share is estimated from."""
BYTES_PER_ENTRY = 64
"""Values and indices, twice while encode gives back what it did not need; keys, tokens, places and values by latent;
the memory of the sort; partial sums."""
BYTES_PER_LATENT = {"bf16": 7}
"""Of one token in the dense step: a float32 pre-activation or gradient, whether it is active (5 where nothing is said),
and what the products take in bfloat16."""
TILE = 128


def serves(call: StepCall) -> bool:
    """Float32, and tokens that the traversal of the latents serves."""
    width, latents = call.W_enc.shape
    wide = all(t.dtype == torch.float32 for t in (call.x, *call.weights))
    return wide and 0 < width <= WIDEST and latents > 0 and call.x.shape[0] <= TOKEN_LIMIT


def sae_step(call: StepCall) -> list[Tensor]:
    """See `patchsae_kernels.reference.sae_step`.

    Entries and the reconstruction of a chunk of tokens stay within ``budget`` bytes each, as do dense latents. A
    parameter that is not a number reaches the total, without a read of the device.

    Raises:
        ValueError: x holds a NaN or an infinity.
    """
    x, precision, share, path = call.x, call.precision, call.share, call.path
    step = Step(call, None if call.dead is None else Dead(call.dead))
    if not path:
        share = _share_of_active(step)
        path = "dense" if share > tuning.dense_from(precision) else "sparse"
    elif path == "dense" and not bool(step.norms.isfinite().all()):
        checks.finite_rows("x", x)
    if path == "dense":
        for rows in dense_chunks(x.shape[0], call.W_enc.shape[1], call.budget, precision):
            step.add_dense(rows)
    else:
        width, latents = call.W_enc.shape
        encoding = encode_call(call, step.x)
        for rows in sparse_chunks(x.shape[0], width, share * latents, call.budget):
            step.add_sparse(rows, *encode_anything(replace(encoding, x=step.x[rows])))
    return step.finish(call.W_enc, call.W_dec)


def encode_call(call: StepCall, x: Tensor, capacity: int = 0) -> BoundedEncodeCall:
    """The encode of a step's tokens; its weights are packed here unless they were before."""
    packed = list(call.packed or pack(call.W_enc, call.b_enc, call.precision))
    encoder = (call.W_enc, call.b_enc, call.b_dec, packed)
    return BoundedEncodeCall(x, *encoder, None, "relu", 0, call.precision, call.budget, capacity)


def bounded_step(call: StepCall, dead: Tensor, capacity: int, dead_capacity: int) -> tuple[list[Tensor], Tensor]:
    """The sparse step in a fixed number of places, for CUDA graphs: nothing is read from the device.

    Args:
        call: but for the dead latents.
        dead: bool ``[S]``; the ghost term has places for ``dead_capacity`` of them, with 0 it is left out.
        capacity: places for the active latents of all tokens together.

    Returns:
        What `sae_step` returns, and int64 ``[4]``: places needed; tokens with too many candidates for a bounded encode;
        tokens from the first that is not finite on; dead latents. The step is incomplete where the first is above
        ``capacity``, the last above ``dead_capacity``, or another is not 0.
    """
    ghosts = None
    if dead_capacity:
        first = torch.argsort((~dead).to(torch.uint8), stable=True)[:dead_capacity]
        ghosts = Dead(first, dead.sum())
    step, tokens = Step(call, ghosts), call.x.shape[0]
    *csr, status = encode_bounded(encode_call(call, step.x, capacity))
    step.add_sparse(slice(0, tokens), *csr)
    found = torch.stack([status[0], status[1], tokens - status[2], dead.sum()])
    return step.finish(call.W_enc, call.W_dec), found


class Step:
    """The sums of one step; chunks of tokens are added in order. Nothing here reads the device."""

    def __init__(self, call: StepCall, dead: Dead | None) -> None:
        self.x, self.b_dec, self.dead, self.budget = call.x.contiguous(), call.b_dec.contiguous(), dead, call.budget
        self.dtype = torch.bfloat16 if call.precision == "bf16" else torch.float32  # of what is multiplied
        self.w = Rows(call.W_enc.t().contiguous(), call.b_enc.contiguous(), call.W_dec.contiguous())
        self.tokens = max(self.x.shape[0], 1)
        self.elements, self.l1 = self.tokens * self.x.shape[1], call.l1
        self.norms = torch.linalg.vector_norm(self.x, dim=1)
        self.weights = torch.ones_like(self.norms)
        if call.tokens_per_image:
            self.weights[:: call.tokens_per_image] = call.cls_weight
        # The gradient by a token's reconstruction is its error times this.
        self.scale = self.weights * 2 / (self.norms * self.elements)
        self.grads = Rows(*(torch.zeros_like(p) for p in self.w))
        self.grad_b_dec = torch.zeros_like(self.b_dec, dtype=torch.float64)
        self.fired = torch.zeros_like(self.w.b_enc, dtype=torch.uint8)
        self.totals = self.norms.new_zeros(5, dtype=torch.float64)

    @cached_property
    def low_enc(self) -> Tensor:
        """The rows as the products take them."""
        return self.w.enc.to(self.dtype)

    @cached_property
    def low_dec(self) -> Tensor:
        return self.w.dec.to(self.dtype)

    def add_sparse(self, rows: slice, values: Tensor, indices: Tensor, indptr: Tensor) -> None:
        """Tokens with their latents, which a CSR of fixed capacity may hold as well as an exact one."""
        x, w = self.x[rows], self.w
        decoding = DecodeCall(values, indices, indptr, self.low_dec, self.b_dec)
        y, squared_error, latents, active = decode_with_losses(decoding, x)
        error = y.sub_(x)
        by_latent = sort_by_latent(indices, indptr, w.b_enc.shape[0])
        # Centred before they are rounded: tokens have a large common part.
        wide = self.dtype == torch.float32
        gradients(
            by_latent,
            x.shape[1],
            g=error.to(self.dtype),
            scale=self.scale[rows],
            W=w.dec,
            constant=self.l1 / self.tokens,
            values=values[by_latent.order],
            sum_g=self.grads.dec,
            x=x if wide else (x - self.b_dec).to(self.dtype),
            shift=self.b_dec if wide else None,
            sum_x=self.grads.enc,
            sum_dots=self.grads.b_enc,
            accumulate=rows.start > 0,
        )
        self.fired |= by_latent.indptr.diff() > 0
        self._add_terms(rows, error, squared_error, latents, active)

    def add_dense(self, rows: slice) -> None:
        x, grads = self.x[rows], self.grads
        centred = x - self.b_dec
        inputs = centred.to(self.dtype)
        pre = x.new_empty(x.shape[0], self.w.b_enc.shape[0])
        product(inputs, self.low_enc.t(), out=pre)
        gate = torch.empty_like(pre, dtype=torch.uint8)
        h = pre if pre.dtype == self.dtype else torch.empty_like(pre, dtype=self.dtype)
        latents, active = dense.relu(pre, self.w.b_enc, h, gate, self.fired)
        error = product(h, self.low_dec, out=torch.empty_like(x)).sub_(centred)
        g = (error * self.scale[rows, None]).to(self.dtype)
        add_product(grads.dec, h.t(), g)
        product(g, self.low_dec.t(), out=pre)  # the pre-activations are not needed any more, nor are the latents:
        dense.gated(pre, h, gate, self.l1 / self.tokens, grads.b_enc)  # their memory takes their gradients
        add_product(grads.enc, h.t(), inputs)
        del pre, h, gate  # before the ghost term takes as much
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
            options = self.elements, self.dtype, self.budget
            ghost = add_ghost(self.x[rows], error, self.dead, self.w, self.b_dec, self.grads, *options)
        sums = [t.sum(dtype=torch.float64) for t in (weighted, latents, active, squared_error)]
        self.totals += torch.stack([*sums, ghost])
        self.grad_b_dec += torch.mv(error.t(), self.scale[rows])


def sparse_chunks(tokens: int, width: int, active: float, budget: int) -> list[slice]:
    """Equal chunks whose entries, at ``active`` a token, and whose reconstruction have room in the budget each."""
    most = min(budget / (8 * width), budget / (BYTES_PER_ENTRY * max(active, 1.0)))
    return _equal(tokens, max(1, int(most)))


def dense_chunks(tokens: int, latents: int, budget: int, precision: str) -> list[slice]:
    """Equal chunks, if possible of whole tiles of the products, whose dense latents have room in the budget."""
    most = max(1, budget // (BYTES_PER_LATENT.get(precision, 5) * latents))
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

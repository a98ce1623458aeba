"""Encode on a GPU: tokens to CSR, one chunk of tokens at a time, without leaving the device until the sizes are needed.

For every chunk: centre and round the tokens, multiply, and keep of the products what can be active (`workspace` has the
three ways). Nothing of a chunk outlives it but its CSR.

Fixed capacities and what happens when they do not suffice: a token with more candidates than slots is encoded again
on its own in plain float32 (one order of summation, so its bits do not depend on the batch either); tokens that had no
room because of their neighbours are encoded again with room for all; a batch with more entries than the output holds is
encoded again with the exact number. Nothing is dropped.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.calls import BoundedEncodeCall, EncodeCall
from patchsae_kernels.latents import indptr_from_counts
from patchsae_kernels.reference.batch_topk import select_over_batch
from patchsae_kernels.triton import tuning
from patchsae_kernels.triton.batch_topk import batch_topk
from patchsae_kernels.triton.pack import Packed, pack, packs
from patchsae_kernels.triton.workspace import Request, chunks, workspace

CSR = tuple[Tensor, Tensor, Tensor]
SLOTS = 4096  # candidates of a token of ReLU and JumpReLU: 27 times a trained L0
TOPK_SLOTS = 512  # of top-k, which has about k of them; 4 k where that is more
PLACES = 512  # candidates a token that a chunk of ReLU or JumpReLU has room for
EXPECTED = 512  # entries a token that ReLU's output is first allocated for


def serves(call: EncodeCall) -> bool:
    """float64 is the oracle's and stays with the reference, as do weights that are not packed."""
    return call.x.dtype != torch.float64 and packs(call.W_enc)


def encode(call: EncodeCall) -> CSR:
    """See `patchsae_kernels.encode`.

    Reads the device as `encode_anything` does, and once more the largest latent, which is infinite after an overflow.
    """
    if call.activation == "batchtopk":
        rows = replace(call, activation="topk")
        sizes = call.x.shape[0], call.k, call.W_enc.shape[1]
        return select_over_batch(lambda m: encode(replace(rows, k=m)), *sizes, batch_topk)
    csr = encode_anything(call)
    checks.finite_latents(csr[0], csr[2])
    return csr


def encode_anything(call: EncodeCall) -> CSR:
    """`encode` of one token by itself, for k = 0 of all active latents, whatever they are.

    Reads the device once, when everything is done (once more for each capacity that did not suffice): the number of
    entries, tokens over their slots, the first row that is not finite, a negative threshold.
    """
    wanted, x = request(call), call.x.contiguous()
    capacity = x.shape[0] * min(call.k or EXPECTED, call.W_enc.shape[1])
    while True:
        values, indices, indptr, candidates, status = encode_into(x, wanted, capacity)
        needed, over = read_status(status, x)
        if needed <= capacity:
            break
        capacity = needed
    values, indices = values[:needed].clone(), indices[:needed].clone()  # the spare capacity is given back
    if over:
        return _repair(x, call.W_enc, call.b_enc, wanted, candidates, (values, indices, indptr))
    return values, indices, indptr


def encode_bounded(call: BoundedEncodeCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `patchsae_kernels.encode_bounded`. Never reads the device, so it can be captured in a graph."""
    wanted, x, capacity = request(call), call.x.contiguous(), call.capacity
    places = min(wanted.slots, triton.cdiv(2 * capacity, max(1, x.shape[0])))  # twice as many candidates as entries
    wanted = replace(wanted, places=max(wanted.places, places))
    values, indices, indptr, _, status = encode_into(x, wanted, capacity)
    return values, indices, indptr.clamp_(max=capacity), status  # whoever follows indptr stays in the arrays


def screening_report(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, budget: int = 2**28) -> Tensor:
    """int32 ``[N]``: candidates that the exact ReLU encode scores again for every token."""
    wanted = request(EncodeCall(x, W_enc, b_enc, b_dec, [], None, "relu", 0, "exact", budget))
    return encode_into(x.contiguous(), wanted, x.shape[0])[3]


def request(call: EncodeCall) -> Request:
    """The launch decisions for one encode."""
    k, precision = call.k, call.precision
    weights = Packed(*call.packed) if call.packed else pack(call.W_enc, call.b_enc, precision)
    fused = tuning.product_design(precision) == "fused"
    slots = max(TOPK_SLOTS, triton.next_power_of_2(4 * k)) if k else SLOTS
    slots = min(slots, triton.next_power_of_2(weights.low.shape[0]))
    b_dec = call.b_dec.detach().contiguous()
    return Request(weights, b_dec, call.threshold, k, precision, fused, slots, PLACES, call.budget)


def encode_into(x: Tensor, call: Request, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Encode without reading the device.

    Returns:
        values float32 ``[capacity]`` and indices int32 ``[capacity]``, of which the first ``indptr[-1]`` are used where
        that is at most capacity; indptr int64 ``[N + 1]``; candidates int32 ``[N]``; status, see `read_status`.
    """
    tokens = x.shape[0]
    values = x.new_empty(capacity, dtype=torch.float32)
    indices = x.new_empty(capacity, dtype=torch.int32)
    indptr = x.new_zeros(tokens + 1, dtype=torch.int64)
    candidates = x.new_empty(tokens, dtype=torch.int32)
    flags = new_flags(x)
    space = workspace(x, call)
    for rows in chunks(tokens, space.rows):
        counts = space.encode(x[rows], rows.start, flags, values, indices, indptr[rows.start : rows.stop + 1])
        candidates[rows] = counts
    return values, indices, indptr, candidates, make_status(indptr[-1], flags, call.threshold)


def new_flags(x: Tensor) -> Tensor:
    """int32 ``[2]``: tokens with more candidates than slots; first row that is not finite (N: none)."""
    flags = x.new_zeros(2, dtype=torch.int32)
    flags[1:] = x.shape[0]
    return flags


def make_status(entries: Tensor, flags: Tensor, threshold: Tensor | None) -> Tensor:
    """int64 ``[4]``: entries, the two flags, 1 for a threshold that is negative or NaN."""
    wrong = torch.zeros_like(entries) if threshold is None else (~(threshold >= 0)).any().to(torch.int64)
    return torch.cat([entries.reshape(1), flags.to(torch.int64), wrong.reshape(1)])


def read_status(status: Tensor, x: Tensor) -> tuple[int, int]:
    """Entries and tokens over their slots, read from the device; ValueError where the input was wrong."""
    entries, over, bad, wrong = status.tolist()
    if bad < x.shape[0]:
        checks.finite_rows("x", x)
        raise ValueError(f"x - b_dec passes the range of float32 in row {bad}")
    if wrong:
        raise ValueError("threshold holds a negative value or NaN; expected threshold >= 0")
    return entries, over


def _repair(x: Tensor, W_enc: Tensor, b_enc: Tensor, call: Request, candidates: Tensor, csr: CSR) -> CSR:
    """Encode the tokens whose candidates found no room again, and put them in their places."""
    over = candidates > call.slots
    if call.exact and not call.k and call.places < call.slots:
        squeezed = (candidates == call.slots + 1).nonzero().squeeze(1)  # so marked, and the odd one that has that many
        if squeezed.numel():
            csr = _merge(csr, squeezed, _again(x[squeezed], W_enc, b_enc, replace(call, places=call.slots)))
            over &= candidates != call.slots + 1
    rows = over.nonzero().squeeze(1)
    if not rows.numel():
        return csr
    if call.exact:
        call = replace(call, weights=pack(W_enc, b_enc, "fp32"), precision="fp32")
    if call.k:
        call = replace(call, slots=triton.next_power_of_2(call.weights.low.shape[0]))
    return _merge(csr, rows, _again(x[rows], W_enc, b_enc, replace(call, fused=True)))


def _again(x: Tensor, W_enc: Tensor, b_enc: Tensor, call: Request) -> CSR:
    """The CSR of a few tokens, in as many attempts as their entries need."""
    capacity = x.shape[0] * (call.k or call.slots)
    while True:
        values, indices, indptr, candidates, status = encode_into(x, call, capacity)
        needed, over = read_status(status, x)
        if needed <= capacity:
            csr = values[:needed], indices[:needed], indptr
            return _repair(x, W_enc, b_enc, call, candidates, csr) if over else csr
        capacity = needed


def _merge(csr: CSR, rows: Tensor, more: CSR) -> CSR:
    """Insert the entries of ``more``, whose row i is row ``rows[i]``, into rows that are empty in ``csr``."""
    counts, extra = csr[2].diff(), more[2].diff()
    entries = more[0].shape[0]
    row = torch.repeat_interleave(torch.arange(counts.shape[0], device=rows.device), counts)
    order = torch.argsort(torch.cat([row, torch.repeat_interleave(rows, extra, output_size=entries)]), stable=True)
    values, indices = torch.cat([csr[0], more[0]])[order], torch.cat([csr[1], more[1]])[order]
    return values, indices, indptr_from_counts(counts.index_add(0, rows, extra))

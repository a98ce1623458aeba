"""Encode on the CPU: packed weights, and CSR out of the extension."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.calls import EncodeCall
from patchsae_kernels.cpu.extension import available, native
from patchsae_kernels.cpu.memory import on_large_pages
from patchsae_kernels.latents import cat
from patchsae_kernels.reference.batch_topk import select_over_batch

CSR = tuple[Tensor, Tensor, Tensor]
_INPUTS = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 2048
"""Tokens that the extension encodes together."""
TOPK_BYTES, TOPK_CANDIDATES = 32, 64
"""Memory of a candidate of top-k, and the most of them for each of the k: there are no more than latents, either."""


class Packed(NamedTuple):
    """Encoder weights as the extension takes them. Dp: D rounded up to 16; Sp, Dl: S to whole panels, D to 32."""

    rows: Tensor  # [S, Dp] float32, W_enc's own memory where its layout allows; for bf16 rounded to that
    low: Tensor  # [Sp / 16, Dl / 2, 16, 2] bfloat16; empty at levels without bfloat16 products
    terms: Tensor  # [2, Sp] float32: |w| and |w - bf16(w)| with their allowances; empty as well


def pack(W_enc: Tensor, b_enc: Tensor, precision: str) -> list[Tensor]:
    """Packed copies for `encode`, a `Packed` as a list; empty where the reference serves these weights."""
    if not available or W_enc.dtype != torch.float32 or W_enc.device.type != "cpu" or W_enc.shape[1] == 0:
        return []
    rows = _rows(W_enc)
    if precision == "fp32" or not native.wants_packed():
        rows = rows.bfloat16().float() if precision == "bf16" else rows
        return [rows, rows.new_empty(0, dtype=torch.bfloat16), rows.new_empty(2, 0)]
    latents, depth = rows.shape
    padded, low_depth = -(-latents // native.PANEL) * native.PANEL, -(-depth // 32) * 32
    low = on_large_pages(rows.new_empty(padded // 16, low_depth // 2, 16, 2, dtype=torch.bfloat16))
    terms = rows.new_empty(2, padded)
    native.pack(rows.data_ptr(), latents, depth, low.data_ptr(), terms.data_ptr(), torch.get_num_threads())
    return [rows, low, terms]


def serves(call: EncodeCall) -> bool:
    """Float64 tokens are the reference's; float64 weights of others take part in float32."""
    return call.x.dtype in _INPUTS and call.W_enc.shape[1] > 0


def encode(call: EncodeCall) -> CSR:
    """See `patchsae_kernels.encode`."""
    tokens, latents = call.x.shape[0], call.W_enc.shape[1]
    if call.W_enc.dtype != torch.float32:
        call = replace(call, W_enc=call.W_enc.float(), b_enc=call.b_enc.float(), b_dec=call.b_dec.float(), packed=[])
    weights = _weights(call)
    if call.activation == "batchtopk":
        rows = replace(call, packed=list(weights), activation="topk")
        return select_over_batch(lambda m: encode(replace(rows, k=m)), tokens, call.k, latents)
    threshold = call.threshold
    if threshold is not None:
        checks.non_negative("threshold", threshold)
        threshold = threshold.float().contiguous()
    x, b_enc, b_dec = call.x.float().contiguous(), call.b_enc.contiguous(), call.b_dec.contiguous()
    parts = []
    for part in x.split(_tokens_at_a_time(tokens, latents, call.k, call.budget)):
        found = _encode(part, weights, b_enc, b_dec, threshold, call.k, call.precision)
        if found is None:
            checks.finite_tokens(x, b_dec)
        else:
            parts.append(found)
    csr = cat(parts)
    checks.finite_latents(csr[0], csr[2])
    return csr


def _tokens_at_a_time(tokens: int, latents: int, k: int, budget: int) -> int:
    """Tokens for one call: all, unless the candidates of top-k for one of its blocks pass the budget."""
    if k:
        within = budget // (TOPK_BYTES * min(latents, TOPK_CANDIDATES * k))
        if within < BLOCK:
            return max(1, within)
    return max(1, tokens)


def _encode(
    x: Tensor, weights: Packed, b_enc: Tensor, b_dec: Tensor, threshold: Tensor | None, k: int, precision: str
) -> CSR | None:
    """All tensors float32 and contiguous. None: x - b_dec is not finite."""
    tokens, width = x.shape
    threads = torch.get_num_threads()
    has_low = weights.low.numel() > 0
    found = native.encode(
        x.data_ptr(),
        tokens,
        width,
        b_enc.shape[0],
        weights.rows.data_ptr(),
        weights.low.data_ptr() if has_low else 0,
        weights.terms.data_ptr() if has_low else 0,
        b_enc.data_ptr(),
        threshold.data_ptr() if threshold is not None else 0,
        b_dec.data_ptr(),
        k,
        precision,
        threads,
    )
    if not found.finite:
        return None
    values = on_large_pages(x.new_empty(found.entries))
    indices = on_large_pages(x.new_empty(found.entries, dtype=torch.int32))
    indptr = x.new_empty(tokens + 1, dtype=torch.int64)
    found.copy(values.data_ptr(), indices.data_ptr(), indptr.data_ptr(), threads)
    return values, indices, indptr


def _weights(call: EncodeCall) -> Packed:
    """What the call has packed, or packed here: in a traced graph, where that is empty, and after a change of level."""
    if call.packed:
        given = Packed(*call.packed)
        if call.precision == "fp32" or (given.low.numel() > 0) == native.wants_packed():
            return given
    return Packed(*pack(call.W_enc, call.b_enc, call.precision))


def _rows(W_enc: Tensor) -> Tensor:
    """``[S, Dp]`` contiguous: W_enc's own memory if it is latent-major and D a multiple of 16, else a padded copy."""
    rows = W_enc.detach().t()
    if rows.shape[1] % 16 == 0:
        return rows.contiguous()
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % 16))

"""Encode, decode and loss terms in one pass over chunks of tokens: of the latents nothing outlives its chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels.calls import DecodeCall, ReconstructCall
from patchsae_kernels.triton import encode as encoding
from patchsae_kernels.triton.decode import decode_with_losses
from patchsae_kernels.triton.encode import serves
from patchsae_kernels.triton.workspace import chunks, workspace

__all__ = ["reconstruct", "serves"]
Losses = tuple[Tensor, Tensor, Tensor, Tensor]


def reconstruct(call: ReconstructCall) -> Losses:
    """See `patchsae_kernels.reconstruct`. Reads the device once, at the end."""
    x, W_dec, bias = call.x.contiguous(), call.W_dec, call.b_dec.detach()
    if call.activation == "batchtopk":  # what is active depends on the whole batch
        return _losses(encoding.encode(call), W_dec, bias, x)
    space = workspace(x, encoding.request(call))
    capacity = space.rows * min(call.k or encoding.EXPECTED, call.W_enc.shape[1])
    values = x.new_empty(capacity, dtype=torch.float32)
    indices = x.new_empty(capacity, dtype=torch.int32)
    flags = encoding.new_flags(x)
    most = x.new_zeros(1, dtype=torch.int64)  # entries of the fullest chunk
    y = x.new_empty(x.shape, dtype=torch.float32)
    squared_error, l1 = x.new_empty(2, x.shape[0], dtype=torch.float32)
    l0 = x.new_empty(x.shape[0], dtype=torch.int64)
    for rows in chunks(x.shape[0], space.rows):
        indptr = x.new_zeros(rows.stop - rows.start + 1, dtype=torch.int64)
        space.encode(x[rows], rows.start, flags, values, indices, indptr)
        torch.maximum(most, indptr[-1:], out=most)
        indptr.clamp_(max=capacity)  # what did not fit is not there to be read
        y[rows], squared_error[rows], l1[rows], l0[rows] = decode_with_losses(
            DecodeCall(values, indices, indptr, W_dec, bias), x[rows]
        )
    needed, over = encoding.read_status(encoding.make_status(most, flags, call.threshold), x)
    if needed > capacity or over:
        return _losses(encoding.encode(call), W_dec, bias, x)
    return y, squared_error, l1, l0


def _losses(csr: tuple[Tensor, Tensor, Tensor], W_dec: Tensor, b_dec: Tensor, x: Tensor) -> Losses:
    y, squared_error, l1, l0 = decode_with_losses(DecodeCall(*csr, W_dec, b_dec), x)
    return y, squared_error, l1, l0.to(torch.int64)

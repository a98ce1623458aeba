"""Gradients of encode and decode on the CPU, by one traversal of the latents."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels.calls import DecodeBackwardCall, EncodeBackwardCall
from patchsae_kernels.cpu.latent_major import TOKEN_LIMIT, add_column_sums, gradients, sort_by_latent
from patchsae_kernels.cpu.memory import on_large_pages


def serves(call: EncodeBackwardCall | DecodeBackwardCall) -> bool:
    return call.is_float32 and call.indptr.shape[0] <= TOKEN_LIMIT


def encode_backward(call: EncodeBackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `patchsae_kernels.reference.encode_backward`."""
    x, b_dec, grad_values, indices, indptr = call.x, call.b_dec, call.grad_values, call.indices, call.indptr
    rows = call.W_enc.t().contiguous()
    by_latent = sort_by_latent(indices, indptr, rows.shape[0])
    grad_rows, grad_b = on_large_pages(torch.empty_like(rows)), rows.new_empty(rows.shape[0])
    gradients(
        by_latent,
        rows.shape[1],
        dots=grad_values[by_latent.order],
        x=(x.to(torch.float32) - b_dec).contiguous(),
        sum_x=grad_rows,
        sum_dots=grad_b,
    )
    # Made without ``with_x`` too: its sum, in a fixed order, is the gradient of b_dec for any number of threads.
    grad_x = torch.ops.patchsae.decode(grad_values, indices, indptr, rows, torch.zeros_like(b_dec))
    grad_b_dec = rows.new_zeros(rows.shape[1], dtype=torch.float64)
    add_column_sums(grad_b_dec, grad_x, -1.0)
    return (grad_x if call.with_x else grad_x[:0]).to(x.dtype), grad_rows.t(), grad_b, grad_b_dec.to(torch.float32)


def decode_backward(call: DecodeBackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `patchsae_kernels.reference.decode_backward`."""
    values, grad_y, W_dec = call.values, call.grad_y.contiguous(), call.W_dec.contiguous()
    by_latent = sort_by_latent(call.indices, call.indptr, W_dec.shape[0])
    grad_W, dots = on_large_pages(torch.empty_like(W_dec)), torch.empty_like(values)
    gradients(by_latent, W_dec.shape[1], dots=dots, g=grad_y, W=W_dec, values=values[by_latent.order], sum_g=grad_W)
    grad_values = torch.empty_like(values)
    grad_values[by_latent.order] = dots
    grad_b = W_dec.new_zeros(W_dec.shape[1], dtype=torch.float64)
    add_column_sums(grad_b, grad_y)
    return grad_values, grad_W, grad_b.to(torch.float32)

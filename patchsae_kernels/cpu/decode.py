"""Decode of CSR latents on the CPU: plain, masked, and the sweep over top-k masks.

Float32 and bfloat16 values and rows come here, the result is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.calls import DecodeCall, MaskedDecodeCall, SweepCall
from patchsae_kernels.cpu.extension import native

_TYPES = (torch.float32, torch.bfloat16)


def serves(call: DecodeCall) -> bool:
    return call.values.dtype in _TYPES and call.W_dec.dtype in _TYPES and call.b_dec.dtype == torch.float32


def decode(call: DecodeCall) -> Tensor:
    """``[N, D]`` float32, see `patchsae_kernels.decode`."""
    y = call.b_dec.new_empty(call.tokens, call.W_dec.shape[1])
    held = _held(call)
    native.decode(*_arguments(held, y))
    return y


def decode_masked(call: MaskedDecodeCall) -> Tensor:
    """``[N, D]`` float32, see `patchsae_kernels.decode_masked`."""
    keep, ids = _per_latent("keep", call.keep, call)
    y = call.b_dec.new_empty(call.tokens, call.W_dec.shape[1])
    held = _held(call)
    native.decode_masked(*_arguments(held, y), keep.data_ptr(), _address(ids))
    return y


def decode_sweep(call: SweepCall) -> tuple[Tensor, Tensor]:
    """``on, off`` ``[K, N, D]`` float32, see `patchsae_kernels.decode_sweep`."""
    rank, ids = _per_latent("rank", call.rank, call)
    on = call.b_dec.new_empty(len(call.ks), call.tokens, call.W_dec.shape[1])
    off = torch.empty_like(on)
    held = _held(call)
    native.decode_sweep(*_arguments(held, on), rank.data_ptr(), _address(ids), call.ks, off.data_ptr())
    return on, off


def _per_latent(name: str, table: Tensor, call: MaskedDecodeCall | SweepCall) -> tuple[Tensor, Tensor | None]:
    """The table and the ids, contiguous, and nothing that would be read outside of them."""
    latents, class_ids = call.W_dec.shape[0], call.class_ids
    if class_ids is None:
        checks.shape(name, table, (latents,), "[S]")
        return table.contiguous(), None
    checks.shape(name, table, (-1, latents), f"[C, S] with S = {latents}")
    checks.shape("class_ids", class_ids, (call.tokens,), "[N]")
    checks.in_range("class_ids", class_ids, 0, table.shape[0])
    return table.contiguous(), class_ids.contiguous()


def _held(call: DecodeCall) -> tuple[Tensor, ...]:
    """What is read through addresses: contiguous, the values in float32."""
    values = call.values.float().contiguous()
    rest = call.indices, call.indptr, call.W_dec, call.b_dec
    return values, *(t.contiguous() for t in rest)


def _arguments(held: tuple[Tensor, ...], y: Tensor) -> tuple[int | bool, ...]:
    """What all three begin with. The caller holds the tensors, which may be temporaries, until the call is over."""
    values, indices, indptr, W_dec, b_dec = held
    latents, width = W_dec.shape
    return (
        values.data_ptr(),
        indices.data_ptr(),
        indptr.data_ptr(),
        indptr.shape[0] - 1,
        values.shape[0],
        W_dec.data_ptr(),
        W_dec.dtype == torch.bfloat16,
        latents,
        b_dec.data_ptr(),
        y.data_ptr(),
        width,
        torch.get_num_threads(),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()

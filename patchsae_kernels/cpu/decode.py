"""Decode of CSR latents on the CPU: plain, masked, and the sweep over top-k masks.

Float32 and bfloat16 values and rows come here; anything else takes the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import checks, reference
from patchsae_kernels.cpu.extension import native
from patchsae_kernels.reference import checked


def decode(values: Tensor, indices: Tensor, indptr: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """``[N, D]`` float32, see `patchsae_kernels.decode`."""
    if not _takes(values, W_dec, b_dec):
        return reference.decode(values, indices, indptr, W_dec, b_dec)
    y = b_dec.new_empty(indptr.shape[0] - 1, W_dec.shape[1])
    held = _held(values, indices, indptr, W_dec, b_dec)
    native.decode(*_arguments(held, y))
    return y


def decode_masked(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    keep: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    class_ids: Tensor | None,
) -> Tensor:
    """``[N, D]`` float32, see `patchsae_kernels.decode_masked`."""
    if not _takes(values, W_dec, b_dec):
        return checked.decode_masked(values, indices, indptr, keep, W_dec, b_dec, class_ids)
    keep, ids = _per_latent("keep", keep, indptr, W_dec, class_ids)
    y = b_dec.new_empty(indptr.shape[0] - 1, W_dec.shape[1])
    held = _held(values, indices, indptr, W_dec, b_dec)
    native.decode_masked(*_arguments(held, y), keep.data_ptr(), _address(ids))
    return y


def decode_sweep(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    rank: Tensor,
    ks: list[int],
    W_dec: Tensor,
    b_dec: Tensor,
    class_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``on, off`` ``[K, N, D]`` float32, see `patchsae_kernels.decode_sweep`."""
    if not _takes(values, W_dec, b_dec):
        return checked.decode_sweep(values, indices, indptr, rank, ks, W_dec, b_dec, class_ids)
    rank, ids = _per_latent("rank", rank, indptr, W_dec, class_ids)
    on = b_dec.new_empty(len(ks), indptr.shape[0] - 1, W_dec.shape[1])
    off = torch.empty_like(on)
    held = _held(values, indices, indptr, W_dec, b_dec)
    native.decode_sweep(*_arguments(held, on), rank.data_ptr(), _address(ids), ks, off.data_ptr())
    return on, off


def _takes(values: Tensor, W_dec: Tensor, b_dec: Tensor) -> bool:
    """Float32 or bfloat16 values and rows, float32 bias; the result is float32."""
    return (
        values.dtype in (torch.float32, torch.bfloat16)
        and b_dec.dtype == torch.float32
        and W_dec.dtype in (torch.float32, torch.bfloat16)
    )


def _per_latent(
    name: str, table: Tensor, indptr: Tensor, W_dec: Tensor, class_ids: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The table and the ids, contiguous, and nothing that would be read outside of them."""
    if class_ids is None:
        checks.shape(name, table, (W_dec.shape[0],), "[S]")
        return table.contiguous(), None
    checks.shape(name, table, (-1, W_dec.shape[0]), f"[C, S] with S = {W_dec.shape[0]}")
    checks.shape("class_ids", class_ids, (indptr.shape[0] - 1,), "[N]")
    checks.in_range("class_ids", class_ids, 0, table.shape[0])
    return table.contiguous(), class_ids.contiguous()


def _held(values: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """What is read through addresses: contiguous, the values in float32."""
    return values.float().contiguous(), *(t.contiguous() for t in others)


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

"""Statistics of CSR latents and their sums over the tokens of an image, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.calls import PoolCall, StatsCall
from patchsae_kernels.cpu.extension import native

_VALUES = (torch.float32, torch.bfloat16)
_LIMIT = 2**31


def serves(call: StatsCall | PoolCall) -> bool:
    rows = call.indptr.shape[0] - 1
    fits = call.values.dtype in _VALUES and rows < _LIMIT and call.latents < _LIMIT
    return fits and (isinstance(call, PoolCall) or _are_totals(call.totals, call.class_counts))


def latent_stats_(call: StatsCall) -> None:
    """Fold whole images into the accumulators, in place; see `patchsae_kernels.latent_stats`."""
    labels = None
    if call.labels is not None and call.class_counts is not None:
        images = (call.indptr.shape[0] - 1) // call.tokens_per_image
        checks.shape("labels", call.labels, (images,), "[B]")
        checks.in_range("labels", call.labels, -1, call.class_counts.shape[0])
        labels = call.labels.contiguous()
    held = _held(call)
    native.latent_stats(
        *_csr(held, call.latents),
        call.tokens_per_image,
        call.first_image,
        _address(labels),
        call.values.new_tensor(call.threshold).item(),  # compared in the dtype of the values, as PyTorch does
        *(t.data_ptr() for t in call.totals),
        _address(call.class_counts),
        torch.get_num_threads(),
    )


def pool_tokens(call: PoolCall) -> tuple[Tensor, Tensor, Tensor]:
    """CSR ``[images, S]``, see `patchsae_kernels.pool_tokens`; dense sums exist for one image a thread."""
    values, indices, indptr = held = _held(call)
    csr, per_image, threads = _csr(held, call.latents), call.tokens_per_image, torch.get_num_threads()
    pooled_indptr = indptr.new_empty((indptr.shape[0] - 1) // per_image + 1)
    native.pool_count(*csr, per_image, pooled_indptr.data_ptr(), threads)
    entries = int(pooled_indptr[-1])
    sums, pooled_indices = values.new_empty(entries), indices.new_empty(entries)
    native.pool_sums(*csr, per_image, pooled_indptr.data_ptr(), sums.data_ptr(), pooled_indices.data_ptr(), threads)
    return sums.to(call.values.dtype), pooled_indices, pooled_indptr


def _are_totals(totals: tuple[Tensor, ...], class_counts: Tensor | None) -> bool:
    """Contiguous, of one length and of the dtypes of `LatentStats`: what may be written through an address."""
    dtypes = (torch.float64, torch.int64, torch.int64, torch.float32, torch.int64)
    plain = all(
        t.shape == totals[0].shape and t.dtype == dtype and t.is_contiguous()
        for t, dtype in zip(totals, dtypes, strict=True)
    )
    if class_counts is None:
        return plain
    fits = class_counts.dim() == 2 and class_counts.shape[1] == totals[0].shape[0]
    return plain and fits and class_counts.dtype == torch.int64 and class_counts.is_contiguous()


def _held(call: StatsCall | PoolCall) -> tuple[Tensor, Tensor, Tensor]:
    """What is read through addresses: contiguous, the values in float32."""
    return call.values.float().contiguous(), call.indices.contiguous(), call.indptr.contiguous()


def _csr(held: tuple[Tensor, Tensor, Tensor], latents: int) -> tuple[int, ...]:
    """What the calls begin with. The caller holds the tensors, which may be temporaries, until the call is over."""
    values, indices, indptr = held
    rows = indptr.shape[0] - 1
    return values.data_ptr(), indices.data_ptr(), indptr.data_ptr(), rows, values.shape[0], latents


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()

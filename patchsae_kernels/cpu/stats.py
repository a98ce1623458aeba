"""Statistics of CSR latents and their sums over the tokens of an image, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import checks, reference
from patchsae_kernels.cpu.extension import native
from patchsae_kernels.reference import checked

_VALUES = (torch.float32, torch.bfloat16)
_LIMIT = 2**31


def latent_stats_(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    tokens_per_image: int,
    threshold: float,
    labels: Tensor | None,
    first_image: int,
    sums: Tensor,
    counts: Tensor,
    image_counts: Tensor,
    max_values: Tensor,
    max_position: Tensor,
    class_counts: Tensor | None,
) -> None:
    """Fold whole images into the accumulators, in place; see `patchsae_kernels.latent_stats`."""
    totals = (sums, counts, image_counts, max_values, max_position)
    rows, latents = indptr.shape[0] - 1, sums.shape[0]
    if not _takes(values, rows, latents) or not _are_totals(totals, class_counts):
        checked.latent_stats_(
            values, indices, indptr, tokens_per_image, threshold, labels, first_image, *totals, class_counts
        )
        return
    if labels is not None and class_counts is not None:
        checks.shape("labels", labels, (rows // tokens_per_image,), "[B]")
        checks.in_range("labels", labels, -1, class_counts.shape[0])
        labels = labels.contiguous()
    held = values.float().contiguous(), indices.contiguous(), indptr.contiguous()
    native.latent_stats(
        *_csr(*held, latents),
        tokens_per_image,
        first_image,
        _address(labels if class_counts is not None else None),
        values.new_tensor(threshold).item(),  # compared in the dtype of the values, as PyTorch does
        *(t.data_ptr() for t in totals),
        _address(class_counts),
        torch.get_num_threads(),
    )


def pool_tokens(
    values: Tensor, indices: Tensor, indptr: Tensor, latents: int, tokens_per_image: int, budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR ``[images, S]``, see `patchsae_kernels.pool_tokens`; dense sums exist for one image a thread."""
    rows = indptr.shape[0] - 1
    if not _takes(values, rows, latents):
        return reference.pool_tokens(values, indices, indptr, latents, tokens_per_image, budget)
    held = values.float().contiguous(), indices.contiguous(), indptr.contiguous()
    csr, threads = _csr(*held, latents), torch.get_num_threads()
    pooled_indptr = indptr.new_empty(rows // tokens_per_image + 1)
    native.pool_count(*csr, tokens_per_image, pooled_indptr.data_ptr(), threads)
    entries = int(pooled_indptr[-1])
    sums, pooled_indices = values.new_empty(entries, dtype=torch.float32), indices.new_empty(entries)
    native.pool_sums(
        *csr, tokens_per_image, pooled_indptr.data_ptr(), sums.data_ptr(), pooled_indices.data_ptr(), threads
    )
    return sums.to(values.dtype), pooled_indices, pooled_indptr


def _takes(values: Tensor, rows: int, latents: int) -> bool:
    return values.dtype in _VALUES and rows < _LIMIT and latents < _LIMIT


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


def _csr(values: Tensor, indices: Tensor, indptr: Tensor, latents: int) -> tuple[int, ...]:
    """What the calls begin with. The caller holds the tensors, which may be temporaries, until the call is over."""
    rows = indptr.shape[0] - 1
    return values.data_ptr(), indices.data_ptr(), indptr.data_ptr(), rows, values.shape[0], latents


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()

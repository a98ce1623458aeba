"""The ops on any device: the reference, behind those checks of arguments that have to read values.

Where the dispatcher finds nothing faster this is what runs; where a faster implementation does not take some dtype, it
comes back here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.reference import sparse
from patchsae_kernels.reference.batch_topk import select_over_batch

CSR = tuple[Tensor, Tensor, Tensor]


def encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    packed: list[Tensor],
    threshold: Tensor | None,
    activation: str,
    k: int,
    precision: str,
    budget: int,
) -> CSR:
    checks.finite_tokens(x, b_dec)
    if threshold is not None:
        checks.non_negative("threshold", threshold)
    if activation == "batchtopk":
        csr = select_over_batch(
            lambda m: sparse.encode(x, W_enc, b_enc, b_dec, None, "topk", m, precision, budget),
            x.shape[0],
            k,
            W_enc.shape[1],
        )
    else:
        csr = sparse.encode(x, W_enc, b_enc, b_dec, threshold, activation, k, precision, budget)
    checks.finite_latents(csr[0], csr[2])
    return csr


def encode_bounded(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    packed: list[Tensor],
    threshold: Tensor | None,
    activation: str,
    k: int,
    precision: str,
    budget: int,
    capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`encode` into ``capacity`` places, whatever is needed; entries that do not fit are left out and reported."""
    values, indices, indptr = torch.ops.patchsae.encode(
        x, W_enc, b_enc, b_dec, packed, threshold, activation, k, precision, budget
    )
    entries = min(values.shape[0], capacity)
    status = indptr.new_tensor([values.shape[0], 0, x.shape[0], 0])
    bounded = values.new_zeros(capacity), indices.new_zeros(capacity)
    bounded[0][:entries], bounded[1][:entries] = values[:entries], indices[:entries]
    return *bounded, indptr.clamp(max=capacity), status


def reconstruct(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    packed: list[Tensor],
    threshold: Tensor | None,
    W_dec: Tensor,
    activation: str,
    k: int,
    precision: str,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    csr = torch.ops.patchsae.encode(x, W_enc, b_enc, b_dec, packed, threshold, activation, k, precision, budget)
    y = torch.ops.patchsae.decode(*csr, W_dec, b_dec)
    values, _, indptr = csr
    rows = torch.repeat_interleave(
        torch.arange(x.shape[0], device=x.device), indptr.diff(), output_size=values.shape[0]
    )
    l1 = values.new_zeros(x.shape[0])
    sparse.add_in_order_(l1, rows, values)
    return y, (y - x.to(y.dtype)).square().sum(1), l1, indptr.diff()


def decode_masked(
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    keep: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    class_ids: Tensor | None,
) -> Tensor:
    if class_ids is not None:
        checks.in_range("class_ids", class_ids, 0, keep.shape[0])
    kept = sparse.filter_entries(values, indices, indptr, sparse.per_entry(keep, indices, indptr, class_ids))
    return torch.ops.patchsae.decode(*kept, W_dec, b_dec)


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
    if class_ids is not None:
        checks.in_range("class_ids", class_ids, 0, rank.shape[0])
    order = sorted(range(len(ks)), key=ks.__getitem__)
    segments = sparse.sweep_segments(values, indices, indptr, rank, [ks[i] for i in order], class_ids)
    parts = torch.ops.patchsae.decode(*segments, W_dec, torch.zeros_like(b_dec))
    on, off = sparse.sweep_sums(parts.view(-1, len(ks) + 1, W_dec.shape[1]), b_dec)
    if order != list(range(len(ks))):
        back = torch.argsort(torch.tensor(order, device=on.device))
        return on[back], off[back]
    return on, off


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
    if labels is not None and class_counts is not None:
        checks.in_range("labels", labels, -1, class_counts.shape[0])
    totals = (sums, counts, image_counts, max_values, max_position, class_counts)
    sparse.latent_stats_(values, indices, indptr, tokens_per_image, threshold, labels, first_image, *totals)

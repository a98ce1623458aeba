"""The reference behind those checks of arguments that have to read values, and the ops that are made of other ops.

Where the dispatcher finds nothing faster this is what runs; what a faster implementation does not serve comes here.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from patchsae_kernels import checks
from patchsae_kernels.calls import (
    BoundedEncodeCall,
    EncodeCall,
    MaskedDecodeCall,
    ReconstructCall,
    StatsCall,
    SweepCall,
)
from patchsae_kernels.reference import sparse
from patchsae_kernels.reference.batch_topk import select_over_batch
from patchsae_kernels.reference.sparse import CSR


def encode(call: EncodeCall) -> CSR:
    checks.finite_tokens(call.x, call.b_dec)
    if call.threshold is not None:
        checks.non_negative("threshold", call.threshold)
    if call.activation == "batchtopk":
        csr = select_over_batch(
            lambda m: sparse.encode(replace(call, activation="topk", k=m)),
            call.x.shape[0],
            call.k,
            call.W_enc.shape[1],
        )
    else:
        csr = sparse.encode(call)
    checks.finite_latents(csr[0], csr[2])
    return csr


def encode_bounded(call: BoundedEncodeCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`encode` into ``capacity`` places, whatever is needed; entries that do not fit are left out and reported."""
    values, indices, indptr = torch.ops.patchsae.encode(*call.arguments())
    entries = min(values.shape[0], call.capacity)
    status = indptr.new_tensor([values.shape[0], 0, call.x.shape[0], 0])
    bounded = values.new_zeros(call.capacity), indices.new_zeros(call.capacity)
    bounded[0][:entries], bounded[1][:entries] = values[:entries], indices[:entries]
    return *bounded, indptr.clamp(max=call.capacity), status


def reconstruct(call: ReconstructCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, csr = call.x, torch.ops.patchsae.encode(*call.arguments())
    y = torch.ops.patchsae.decode(*csr, call.W_dec, call.b_dec)
    values, _, indptr = csr
    rows = torch.repeat_interleave(
        torch.arange(x.shape[0], device=x.device), indptr.diff(), output_size=values.shape[0]
    )
    l1 = values.new_zeros(x.shape[0])
    sparse.add_in_order_(l1, rows, values)
    return y, (y - x.to(y.dtype)).square().sum(1), l1, indptr.diff()


def decode_masked(call: MaskedDecodeCall) -> Tensor:
    if call.class_ids is not None:
        checks.in_range("class_ids", call.class_ids, 0, call.keep.shape[0])
    kept = sparse.per_entry(call.keep, call.indices, call.indptr, call.class_ids)
    y: Tensor = torch.ops.patchsae.decode(*sparse.filter_entries(*call.csr, kept), call.W_dec, call.b_dec)
    return y


def decode_sweep(call: SweepCall) -> tuple[Tensor, Tensor]:
    ks = call.ks
    if call.class_ids is not None:
        checks.in_range("class_ids", call.class_ids, 0, call.rank.shape[0])
    order = sorted(range(len(ks)), key=ks.__getitem__)
    segments = sparse.sweep_segments(*call.csr, call.rank, [ks[i] for i in order], call.class_ids)
    parts = torch.ops.patchsae.decode(*segments, call.W_dec, torch.zeros_like(call.b_dec))
    on, off = sparse.sweep_sums(parts.view(-1, len(ks) + 1, call.W_dec.shape[1]), call.b_dec)
    if order != list(range(len(ks))):
        back = torch.argsort(torch.tensor(order, device=on.device))
        return on[back], off[back]
    return on, off


def latent_stats_(call: StatsCall) -> None:
    if call.labels is not None and call.class_counts is not None:
        checks.in_range("labels", call.labels, -1, call.class_counts.shape[0])
    sparse.latent_stats_(call)

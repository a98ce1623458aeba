"""Encode, decode, their gradients and statistics in plain PyTorch: the definition of correct.

Evaluated in float64 this is the oracle that other implementations are compared with; in float32 it is what runs where
no faster implementation exists. Arguments have been validated by `patchsae_kernels.checks`. Dense latents exist in row
chunks only, each with its temporaries within ``budget`` bytes.

Equations: Lim et al., arXiv 2412.05276, section 3, and the released code where the two differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae_kernels.calls import DecodeBackwardCall, DecodeCall, EncodeBackwardCall, EncodeCall, PoolCall, StatsCall
from patchsae_kernels.latents import indptr_from_counts

CSR = tuple[Tensor, Tensor, Tensor]


def encode(call: EncodeCall) -> CSR:
    """CSR of ``act((x - b_dec) W_enc + b_enc)``; values in the promotion of x's dtype with float32."""
    x, dtype = call.x, torch.promote_types(call.x.dtype, torch.float32)
    W_enc, b_enc, b_dec = (t.to(dtype) for t in (call.W_enc, call.b_enc, call.b_dec))
    if call.precision == "bf16":
        W_enc = rounded(W_enc)
    values, indices, ends, entries = [], [], [x.new_zeros(1, dtype=torch.int64)], 0
    for rows in row_chunks(x.shape[0], W_enc.shape[1], call.budget):
        centred = x[rows].to(dtype) - b_dec
        pre = torch.addmm(b_enc, rounded(centred) if call.precision == "bf16" else centred, W_enc)
        pre.nan_to_num_(*3 * [float("inf")])  # a sum that has overflowed is seen, whichever way it went
        flat = _active(pre, call).flatten().nonzero().squeeze(1)
        values.append(pre.flatten()[flat])
        indices.append((flat % W_enc.shape[1]).to(torch.int32))
        ends.append(entries + _row_ends(flat, pre.shape[0], pre.shape[1]))
        entries += flat.shape[0]
    if not values:
        return x.new_zeros(0, dtype=dtype), x.new_zeros(0, dtype=torch.int32), ends[0]
    return torch.cat(values), torch.cat(indices), torch.cat(ends)


def encode_backward(call: EncodeBackwardCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, W_enc (latent-major, as it is stored), b_enc, b_dec; the active set is held fixed.

    Without ``with_x``, x is data: its gradient is left out (``[0, D]``), which saves a decode.
    """
    x, W_enc, b_dec, grad_values = call.x, call.W_enc, call.b_dec, call.grad_values
    dtype = grad_values.dtype
    by_latent = _transpose(call.indices, call.indptr, W_enc.shape[1])
    grad_latent = grad_values[by_latent.order]
    centred = x.to(dtype) - b_dec.to(dtype)
    grad_W = _gather(grad_latent, by_latent.tokens, by_latent.indptr, centred).t()
    grad_b = _gather(grad_latent, by_latent.tokens, by_latent.indptr, centred.new_ones(centred.shape[0], 1)).squeeze(1)
    grads = grad_W.to(W_enc.dtype), grad_b.to(b_dec.dtype)
    if not call.with_x:
        return x.new_zeros(0, x.shape[1]), *grads, -torch.mv(W_enc.to(dtype), grad_b).to(b_dec.dtype)
    grad_x = _gather(grad_values, call.indices, call.indptr, W_enc.t().to(dtype))
    return grad_x.to(x.dtype), *grads, -grad_x.sum(0).to(b_dec.dtype)


def decode(call: DecodeCall) -> Tensor:
    """``z W_dec + b_dec``, accumulated in at least float32."""
    dtype = torch.promote_types(call.values.dtype, torch.float32)
    return _gather(call.values.to(dtype), call.indices, call.indptr, call.W_dec.to(dtype)) + call.b_dec.to(dtype)


def decode_backward(call: DecodeBackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values (at the non-zeros only), W_dec, b_dec."""
    grad_y, values, indices = call.grad_y, call.values, call.indices
    W = call.W_dec.to(grad_y.dtype)
    rows = _rows(call.indptr, values.shape[0])
    grad_values = torch.empty_like(values, dtype=grad_y.dtype)
    step = max(1, call.budget // (2 * W.shape[1] * W.element_size()))
    for start in range(0, values.shape[0], step):
        part = slice(start, start + step)
        grad_values[part] = (grad_y[rows[part]] * W[indices[part]]).sum(1)
    by_latent = _transpose(indices, call.indptr, W.shape[0])
    grad_W = _gather(values.to(grad_y.dtype)[by_latent.order], by_latent.tokens, by_latent.indptr, grad_y)
    return grad_values.to(values.dtype), grad_W.to(call.W_dec.dtype), grad_y.sum(0)


def sweep_segments(
    values: Tensor, indices: Tensor, indptr: Tensor, rank: Tensor, ks: list[int], class_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR with K + 1 rows a token: row (n, j) holds the entries of token n whose rank lies between the j-th and next k.

    ``ks`` ascends. Keep sets of a sweep are nested, so every entry falls in exactly one segment and is decoded once.
    """
    cuts = torch.tensor(ks, dtype=torch.int32, device=values.device)
    segment = torch.searchsorted(cuts, per_entry(rank, indices, indptr, class_ids), right=True)
    place = _rows(indptr, values.shape[0]) * (len(ks) + 1) + segment
    order = torch.argsort(place, stable=True)
    counts = torch.bincount(place, minlength=(indptr.shape[0] - 1) * (len(ks) + 1))
    return values[order], indices[order], indptr_from_counts(counts)


def sweep_sums(parts: Tensor, b_dec: Tensor) -> tuple[Tensor, Tensor]:
    """``on, off`` ``[K, N, D]`` from decoded segments ``[N, K + 1, D]``: running sums from the front and the back."""
    tokens, segments, width = parts.shape
    on = parts.new_empty(segments - 1, tokens, width)
    off = torch.empty_like(on)
    front, back = b_dec, b_dec
    for j in range(segments - 1):
        front = torch.add(front, parts[:, j], out=on[j])
        back = torch.add(back, parts[:, segments - 1 - j], out=off[segments - 2 - j])
    return on, off


def latent_stats_(call: StatsCall) -> None:
    """Fold the tokens of whole images into the accumulators, in place.

    ``max_position`` is image * tokens_per_image + token, or -1 for a latent that never fired.
    """
    values, latents, per_image = call.values, call.sums.shape[0], call.tokens_per_image
    index = call.indices.long()
    rows = _rows(call.indptr, values.shape[0])
    image = rows // per_image
    add_in_order_(call.sums, index, values.double())
    over = values > call.threshold
    call.counts.add_(torch.bincount(index[over], minlength=latents))
    fired = values > 0
    images = (call.indptr.shape[0] - 1) // per_image
    seen = torch.zeros(images * latents, dtype=torch.bool, device=values.device)
    seen[image[fired] * latents + index[fired]] = True
    call.image_counts.add_(_count(seen.view(-1, latents), 0))
    _fold_maxima(values.float(), index, rows + call.first_image * per_image, call.max_values, call.max_position)
    if call.class_counts is not None:
        assert call.labels is not None
        label = call.labels[image]
        counted = over & (label >= 0)
        place = label[counted] * latents + index[counted]
        call.class_counts.view(-1).index_add_(0, place, torch.ones_like(place))


def pool_tokens(call: PoolCall) -> CSR:
    """CSR ``[images, S]`` of sums over an image's tokens, summed in float64 in the order of the tokens."""
    values, indices, indptr = call.values, call.indices, call.indptr
    latents, tokens_per_image = call.latents, call.tokens_per_image
    images = (indptr.shape[0] - 1) // tokens_per_image
    out_values, out_indices, ends, entries = [], [], [indptr[:1]], 0
    for chunk in row_chunks(images, latents, call.budget):
        first, last = indptr[chunk.start * tokens_per_image], indptr[chunk.stop * tokens_per_image]
        part = slice(int(first), int(last))
        pointers = indptr[chunk.start * tokens_per_image : chunk.stop * tokens_per_image + 1] - first
        image = _rows(pointers, part.stop - part.start) // tokens_per_image
        place = image * latents + indices[part]
        sums = torch.zeros((chunk.stop - chunk.start) * latents, dtype=torch.float64, device=values.device)
        add_in_order_(sums, place, values[part].double())
        seen = torch.zeros(sums.shape, dtype=torch.bool, device=values.device)
        seen[place] = True
        flat = seen.nonzero().squeeze(1)
        out_values.append(sums[flat].to(values.dtype))
        out_indices.append((flat % latents).to(torch.int32))
        ends.append(entries + _row_ends(flat, chunk.stop - chunk.start, latents))
        entries += flat.shape[0]
    if not out_values:
        return values[:0], indices[:0], indptr[:1]
    return torch.cat(out_values), torch.cat(out_indices), torch.cat(ends)


def add_in_order_(target: Tensor, index: Tensor, source: Tensor) -> None:
    """``target[index] += source`` entry by entry from first to last, so that cutting the source changes no bit."""
    if target.device.type == "cpu":
        target.index_add_(0, index, source)  # sequential for one-dimensional targets
    else:
        target.index_put_((index,), source, accumulate=True)  # sorts by index, stably, instead of using atomics


def row_chunks(rows: int, columns: int, budget: int) -> Iterator[slice]:
    """Cut rows so that one dense float32 chunk, its mask and its index temporaries stay within ``budget`` bytes.

    24 bytes an element: the value (4), the mask (1) and, with half of all latents active as at the released start,
    8-byte positions, their remainders and the outputs (12 on average), rounded up.
    """
    step = max(1, budget // (24 * max(columns, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class _ByLatent(NamedTuple):
    order: Tensor  # int64 [nnz]: the entries sorted by latent, stably, so tokens ascend for every latent
    tokens: Tensor  # int64 [nnz]
    indptr: Tensor  # int64 [S + 1]


def _transpose(indices: Tensor, indptr: Tensor, latents: int) -> _ByLatent:
    order = torch.argsort(indices, stable=True)
    rows = _rows(indptr, indices.shape[0])
    return _ByLatent(order, rows[order], indptr_from_counts(torch.bincount(indices, minlength=latents)))


def _rows(indptr: Tensor, nnz: int) -> Tensor:
    tokens = torch.arange(indptr.shape[0] - 1, device=indptr.device)
    return torch.repeat_interleave(tokens, indptr.diff(), output_size=nnz)


def _gather(values: Tensor, indices: Tensor, indptr: Tensor, weight: Tensor) -> Tensor:
    """``out[n] = sum_p values[p] * weight[indices[p]]`` over the entries of row n, in order; an empty row is 0."""
    if indptr.shape[0] == 1 or values.shape[0] == 0:
        return weight.new_zeros(indptr.shape[0] - 1, weight.shape[1])
    return F.embedding_bag(
        indices.long(), weight, indptr, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def filter_entries(values: Tensor, indices: Tensor, indptr: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The CSR of the entries for which ``keep`` (bool ``[nnz]``) holds."""
    kept = indptr_from_counts(keep.long())
    return values[keep], indices[keep], kept[indptr]


def per_entry(table: Tensor, indices: Tensor, indptr: Tensor, class_ids: Tensor | None) -> Tensor:
    """``table[latent]``, or ``table[class of the token, latent]``, for every entry."""
    if class_ids is None:
        return table[indices.long()]
    return table[class_ids[_rows(indptr, indices.shape[0])], indices.long()]


def _row_ends(flat: Tensor, rows: int, columns: int) -> Tensor:
    """int64 ``[rows]``: entries up to the end of every row, from the ascending flat positions of the entries."""
    return torch.searchsorted(flat, torch.arange(1, rows + 1, device=flat.device) * columns)


def _count(mask: Tensor, dim: int) -> Tensor:
    """int64 count of a bool matrix; summing bytes is 30 times as fast as summing booleans on a CPU."""
    return mask.view(torch.uint8).sum(dim, dtype=torch.int32).long()


def _active(pre: Tensor, call: EncodeCall) -> Tensor:
    if call.activation == "relu":
        return pre > 0
    if call.activation == "jumprelu":
        assert call.threshold is not None
        return pre > call.threshold.to(pre.dtype)
    return _top_positive(pre, call.k)


def _top_positive(pre: Tensor, k: int) -> Tensor:
    """The k largest positive entries of every row, ties towards the lower index (torch.topk leaves ties open)."""
    smallest = torch.topk(pre, k, dim=1, sorted=False).values.amin(1, keepdim=True)
    positive = pre > 0
    keep = (pre >= smallest) & positive
    tied = (_count(keep, 1) > k).nonzero().squeeze(1)
    if tied.numel():
        at_edge = (pre[tied] == smallest[tied]) & positive[tied]
        above = keep[tied] & ~at_edge
        room = k - above.sum(1, keepdim=True)
        keep[tied] = above | (at_edge & (at_edge.cumsum(1) <= room))
    return keep


def rounded(x: Tensor) -> Tensor:
    """Round to bfloat16 and widen again: products of the result are exact in float32, so only the sum rounds."""
    return x.to(torch.bfloat16).to(x.dtype)


def _fold_maxima(values: Tensor, index: Tensor, position: Tensor, max_values: Tensor, max_position: Tensor) -> None:
    """Keep the largest value of every latent and where it was; a tie stays with the earlier position."""
    best = torch.zeros_like(max_values).scatter_reduce_(0, index, values, "amax")
    nowhere = torch.iinfo(torch.int64).max
    at_best = (values == best[index]) & (values > 0)
    where = torch.full_like(max_position, nowhere).scatter_reduce_(0, index[at_best], position[at_best], "amin")
    earlier = (best == max_values) & (where < max_position)
    better = ((best > max_values) | earlier) & (where != nowhere)
    max_values[better] = best[better]
    max_position[better] = where[better]

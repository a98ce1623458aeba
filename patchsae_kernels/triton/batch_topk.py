"""BatchTopK: the largest entries of a whole CSR, exactly, with ties settled by position.

A radix select finds the smallest value that is kept: positive floats are ordered as their bits, so four histograms of 8
bits (the first of 7) fix it. Rows are then counted and copied. Everything is integer arithmetic whose result does not
depend on the order of execution.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch

BINS = 256
PASSES = 4
"""Digits of the 31 bits of a positive float, from the top: 7, 8, 8, 8."""

HISTOGRAM_BLOCK = 1024
HISTOGRAM_BLOCKS = 8
"""Blocks that one program counts before it adds its histogram to the others'."""

ROW_BLOCK = 256


def batch_topk(values: Tensor, indices: Tensor, indptr: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``total`` largest entries of a CSR, as a CSR with the same rows; of equal values the earlier entries stay.

    No synchronisation. Entries at and after ``indptr[-1]`` are ignored; where fewer than the returned length are kept,
    ``indptr`` of the result tells so and what the arrays hold behind its end is undefined.

    Args:
        values: ``[L]`` float32 or bfloat16, above 0.
        indices: int32 ``[L]``, ascending in a row.
        indptr: int64 ``[N + 1]``, from 0 to the number of entries, at most L.
        total: how many to keep, >= 0.

    Returns:
        values and indices of length min(total, L), indptr int64 ``[N + 1]`` ending at min(total, ``indptr[-1]``).
    """
    values, indices, indptr = values.contiguous(), indices.contiguous(), indptr.contiguous()
    rows, length, kept = indptr.shape[0] - 1, values.shape[0], min(total, values.shape[0])
    kept_values, kept_indices = values.new_empty(kept), indices.new_empty(kept)
    kept_indptr = torch.zeros_like(indptr)
    if kept == 0 or rows == 0:
        return kept_values, kept_indices, kept_indptr
    limit = _limit(values, indptr, length, total)
    counts = torch.empty(2, rows, dtype=torch.int64, device=values.device)
    row_options = {"BLOCK": ROW_BLOCK, "num_warps": 2, "num_stages": 1}
    launch(batch_topk_count_kernel, (rows,), values, indptr, limit, counts, rows, **row_options)
    above, ties = counts.cumsum(1)
    torch.add(above, torch.minimum(ties, limit[1]), out=kept_indptr[1:])
    launch(
        batch_topk_write_kernel,
        (rows,),
        *(values, indices, indptr, limit, counts, ties, kept_indptr, kept_values, kept_indices, rows),
        **row_options,
    )
    return kept_values, kept_indices, kept_indptr


def _limit(values: Tensor, indptr: Tensor, length: int, total: int) -> Tensor:
    """int64 ``[2]``: bits of the smallest kept value, and how many entries of just that value are kept."""
    rows = indptr.shape[0] - 1
    histograms = torch.zeros(PASSES, BINS, dtype=torch.int64, device=values.device)
    programs = triton.cdiv(length, HISTOGRAM_BLOCK * HISTOGRAM_BLOCKS)
    for done in range(PASSES):
        launch(
            batch_topk_histogram_kernel,
            (programs,),
            *(values, indptr, histograms, rows, total),
            DONE=done,
            BINS=BINS,
            BLOCK=HISTOGRAM_BLOCK,
            BLOCKS=HISTOGRAM_BLOCKS,
            num_warps=4,
            num_stages=1,
        )
    limit = torch.empty(2, dtype=torch.int64, device=values.device)
    launch(
        batch_topk_limit_kernel,
        (1,),
        *(indptr, histograms, limit, rows, total),
        PASSES=PASSES,
        BINS=BINS,
        num_warps=4,
        num_stages=1,
    )
    return limit


@triton.jit
def batch_topk_histogram_kernel(
    values,
    indptr,
    histograms,
    rows,
    total,
    DONE: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Histogram of digit ``DONE`` over the entries that agree with the limit in the digits before it.

    Instructions: a histogram of 256 bins costs a warp about 100 for 32 entries, 12 M for 3.76 M entries: 13 us a pass
    on 132 multiprocessors; reading the 15 MB takes 3 us, from the L2 after the first pass.
    """
    entries = tl.load(indptr + rows)
    prefix, _ = _chosen(histograms, tl.minimum(entries, total), DONE, BINS)
    first = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)
    shift: tl.constexpr = 24 - 8 * DONE
    found = tl.zeros([BINS], tl.int32)
    for block in range(BLOCKS):
        at = first + block * BLOCK + tl.arange(0, BLOCK)
        inside = at < entries
        bits = tl.load(values + at, mask=inside, other=0.0).to(tl.float32).to(tl.int32, bitcast=True)
        if DONE > 0:
            inside = inside & ((bits >> (shift + 8)) == prefix)
        found += tl.histogram((bits >> shift) & (BINS - 1), BINS, mask=inside)
    bins = tl.arange(0, BINS)
    tl.atomic_add(histograms + DONE * BINS + bins, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def batch_topk_limit_kernel(indptr, histograms, limit, rows, total, PASSES: tl.constexpr, BINS: tl.constexpr):
    """The bits of the smallest kept value and how many of its entries are kept. One program; latency only."""
    bits, room = _chosen(histograms, tl.minimum(tl.load(indptr + rows), total), PASSES, BINS)
    tl.store(limit, bits.to(tl.int64))
    tl.store(limit + 1, room)


@triton.jit
def batch_topk_count_kernel(values, indptr, limit, counts, rows, BLOCK: tl.constexpr):
    """Entries of a row above the limit, and entries equal to it. Memory: 15 MB from the L2, 3 us."""
    row = tl.program_id(0)
    bound = tl.load(limit).to(tl.int32)
    above = tl.zeros([BLOCK], tl.int32)
    ties = tl.zeros([BLOCK], tl.int32)
    end = tl.load(indptr + row + 1)
    for start in range(tl.load(indptr + row), end, BLOCK):
        bits = _bits(values, start, end, BLOCK)
        above += (bits > bound).to(tl.int32)
        ties += (bits == bound).to(tl.int32)
    tl.store(counts + row, tl.sum(above, 0).to(tl.int64))
    tl.store(counts + rows + row, tl.sum(ties, 0).to(tl.int64))


@triton.jit
def batch_topk_write_kernel(
    values,
    indices,
    indptr,
    limit,
    counts,
    ties,
    kept_indptr,
    kept_values,
    kept_indices,
    rows,
    BLOCK: tl.constexpr,
):
    """Copy what a row keeps. Memory: 30 MB read, 8 bytes an entry kept."""
    row = tl.program_id(0)
    bound = tl.load(limit).to(tl.int32)
    # Ties that this row may keep: the room less what the rows before it have used of it.
    room = tl.load(limit + 1) - (tl.load(ties + row) - tl.load(counts + rows + row))
    place = tl.load(kept_indptr + row)
    end = tl.load(indptr + row + 1)
    for start in range(tl.load(indptr + row), end, BLOCK):
        bits = _bits(values, start, end, BLOCK)
        tied = (bits == bound).to(tl.int32)
        keep = (bits > bound) | ((tied > 0) & (tl.cumsum(tied, 0) <= room))
        kept = keep.to(tl.int32)
        target = place + tl.cumsum(kept, 0) - kept
        at = start + tl.arange(0, BLOCK)
        tl.store(kept_values + target, tl.load(values + at, mask=keep, other=0.0), mask=keep)
        tl.store(kept_indices + target, tl.load(indices + at, mask=keep, other=0), mask=keep)
        room -= tl.sum(tied, 0)
        place += tl.sum(kept, 0)


@triton.jit
def _chosen(histograms, wanted, DONE: tl.constexpr, BINS: tl.constexpr):
    """The first ``DONE`` digits of the ``wanted``-th largest value, and its rank among the values that share them."""
    bins = tl.arange(0, BINS)
    prefix = (wanted * 0).to(tl.int32)
    for digit in tl.static_range(DONE):
        counts = tl.load(histograms + digit * BINS + bins)
        below = tl.cumsum(counts, 0) - counts
        every = tl.sum(counts, 0)
        # The largest bin with at least `wanted` entries in it and above it.
        chosen = tl.max(tl.where(every - below >= wanted, bins, 0), 0)
        wanted -= tl.sum(tl.where(bins > chosen, counts, 0), 0)
        prefix = (prefix << 8) | chosen
    return prefix, wanted


@triton.jit
def _bits(values, start, end, BLOCK: tl.constexpr):
    """Bits of a block of a row's values as float32; -1, which is below every value, behind the row's end."""
    at = start + tl.arange(0, BLOCK)
    value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
    return tl.where(at < end, value.to(tl.int32, bitcast=True), -1)

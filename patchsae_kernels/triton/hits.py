"""From hits to entries: list the buckets of every token that hold some, with the place of each bucket's first entry,
then read what is there.

A token's entries are the bits of its words, so their number, and the place of each, are known from the words alone:
nothing is counted in a pass of its own, and the buckets of a token with many can be read by several programs at once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch
from patchsae_kernels.triton.product import BUCKET

LISTED = 2048  # words of a step of the listing: 65,536 latents
GATHERED = 32  # buckets of a step of the gather
MOST_STEPS = 12  # of one program, whatever the token: the longest one must not hold up the others


def list_hits(hits: Tensor, most: int, buckets: Tensor, firsts: Tensor, found: Tensor, counts: Tensor) -> None:
    """List the buckets of every token that hold entries.

    Args:
        hits: int32 ``[rows, Sp / 32]``, see `product`.
        most: entries beyond which a token is not listed: its number of buckets becomes 0.
        buckets: int32 ``[rows, Sp / 32]``, written up to found, ascending.
        firsts: int32 ``[rows, Sp / 32]``, written likewise: the token's entries before those of the bucket.
        found: int32 ``[rows]``, the number of buckets. counts: int32 ``[rows]``, the number of entries.
    """
    rows, width = hits.shape
    block = min(LISTED, triton.next_power_of_2(width))
    launch(list_hits_kernel, (rows,), hits, buckets, firsts, found, counts, width, most, BLOCK=block, num_warps=4)


def gather_hits(
    hits: Tensor,
    buckets: Tensor,
    firsts: Tensor,
    found: Tensor,
    indptr: Tensor,
    indices: Tensor,
    chunk: Tensor | None = None,
    bias: Tensor | None = None,
    values: Tensor | None = None,
    rows: Tensor | None = None,
) -> None:
    """Write the entries of every token to ``indptr[row]`` on, latents ascending; none goes past the end of indices.

    Args:
        hits, buckets, firsts, found: of `list_hits`. indptr: int64 ``[rows + 1]``. indices: int32 ``[capacity]``.
        chunk, bias, values: with them ``chunk[row, latent] + bias[latent]`` is written to values ``[capacity]``.
        rows: int32 ``[capacity]``; with it the row of every entry is written.
    """
    tokens, width = hits.shape
    launch(
        gather_hits_kernel,
        (tokens, triton.cdiv(width, GATHERED * MOST_STEPS)),
        hits,
        buckets,
        firsts,
        found,
        indptr,
        indices,
        chunk,
        bias,
        values,
        rows,
        width,
        indices.shape[0],
        BUCKET=BUCKET,
        BLOCK=min(GATHERED, triton.next_power_of_2(width)),
        num_warps=4,
        num_stages=1,
    )


@triton.jit
def popcount(word):
    """Number of bits set in 32-bit words."""
    x = word.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def list_hits_kernel(
    hits_ptr,
    buckets_ptr,
    firsts_ptr,
    found_ptr,
    counts_ptr,
    width,
    most,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    found = 0
    count = 0
    for start in range(0, width, BLOCK):
        bucket = start + tl.arange(0, BLOCK)
        word = tl.load(hits_ptr + row * width + bucket, bucket < width, other=0)
        entries = popcount(word)
        hit = word != 0
        # Both running sums in one scan: entries below, buckets above 32 bits.
        before = tl.cumsum((hit.to(tl.int64) << 32) + entries, 0)
        place = found + (before >> 32).to(tl.int32) - 1
        tl.store(buckets_ptr + row * width + place, bucket, hit)
        tl.store(firsts_ptr + row * width + place, count + before.to(tl.int32) - entries, hit)
        found += tl.sum(hit.to(tl.int32), 0)
        count += tl.sum(entries, 0)
    tl.store(found_ptr + row, tl.where(count <= most, found, 0))
    tl.store(counts_ptr + row, count)


@triton.jit
def gather_hits_kernel(
    hits_ptr,
    buckets_ptr,
    firsts_ptr,
    found_ptr,
    indptr_ptr,
    indices_ptr,
    chunk_ptr,  # [rows, width * BUCKET] or None, as the following three
    bias_ptr,
    values_ptr,
    rows_ptr,
    width,
    capacity,
    BUCKET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    found = tl.load(found_ptr + row)
    base = tl.load(indptr_ptr + row)
    bit = tl.arange(0, BUCKET)[None, :]
    for start in range(tl.program_id(1) * BLOCK, found, tl.num_programs(1) * BLOCK):
        i = start + tl.arange(0, BLOCK)
        bucket = tl.load(buckets_ptr + row * width + i, i < found, other=0)[:, None]
        first = tl.load(firsts_ptr + row * width + i, i < found, other=0)[:, None]
        word = tl.load(hits_ptr + row * width + bucket, (i < found)[:, None], other=0)
        place = base + first + popcount(word & ((1 << bit) - 1))
        fits = ((word >> bit) & 1 != 0) & (place < capacity)
        latent = bucket * BUCKET + bit
        tl.store(indices_ptr + place, latent, fits)
        if values_ptr is not None:
            product = tl.load(chunk_ptr + row * (width * BUCKET) + latent, fits, other=0.0).to(tl.float32)
            tl.store(values_ptr + place, product + tl.load(bias_ptr + latent, fits, other=0.0), fits)
        if rows_ptr is not None:
            tl.store(rows_ptr + place, (tl.zeros_like(latent) + row).to(tl.int32), fits)

"""latent_stats_: sums, counts, maxima and class counts of every latent, one image after another.

Float64 sums need a fixed order, and no float atomics are allowed. So every image gets a dense table of its own, filled
token by token by one program, and the tables are then added to the totals image by image. The result does not depend
on how images were cut into batches or groups, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from patchsae_kernels import checks
from patchsae_kernels.calls import StatsCall
from patchsae_kernels.triton.launch import launch

TABLE_BYTES = 128 * 2**20
"""The most memory for the tables of a group of images; 128 images of 49,152 latents take 96 MiB."""

RECORD_BYTES = 16
MOST_TOKENS = 2**16 - 1
"""Tokens of an image: its position and its count of tokens have 16 bits each in a record."""

ROW_BLOCK = 256
CLEAR_BLOCK = 2048
FOLD_BLOCK = 128


def serves(call: StatsCall) -> bool:
    """The reference serves float64 and very long images."""
    return call.values.dtype in (torch.float32, torch.bfloat16) and call.tokens_per_image <= MOST_TOKENS


def latent_stats_(call: StatsCall) -> None:
    """Fold the tokens of whole images into the accumulators, in place, as `reference.latent_stats_` does.

    Sums are added up in float64 inside an image first and then image by image, where the reference adds token by token:
    the two agree to float64 rounding; everything else is equal. As there, ``threshold`` is rounded to the dtype of the
    values. Entries at and after ``indptr[-1]`` are ignored.

    With labels on a device there is one host read (their range); without labels there is none, nor under recording on
    meta tensors. The CSR is a valid one, without a latent twice in a row; the accumulators are contiguous.

    Raises:
        ValueError: a label is out of range.
    """
    labels, class_counts, tokens_per_image = call.labels, call.class_counts, call.tokens_per_image
    if labels is not None and class_counts is not None and not labels.is_meta:
        checks.in_range("labels", labels, -1, class_counts.shape[0])
    values, indices, indptr = call.values.contiguous(), call.indices.contiguous(), call.indptr.contiguous()
    labels = None if labels is None else labels.contiguous()
    images, latents = (indptr.shape[0] - 1) // tokens_per_image, call.latents
    if images == 0 or latents == 0 or values.shape[0] == 0:
        return
    at_once = min(images, max(1, TABLE_BYTES // (RECORD_BYTES * latents)))
    table = torch.empty(at_once * latents, 2, dtype=torch.int64, device=values.device)
    threshold = torch.tensor(call.threshold, dtype=values.dtype, device="cpu").item()
    for start in range(0, images, at_once):
        group = min(at_once, images - start)
        pointers = indptr[start * tokens_per_image :]
        launch(
            latent_stats_image_kernel,
            (group,),
            *(values, indices, pointers, table, tokens_per_image, latents, threshold),
            BLOCK=ROW_BLOCK,
            CLEAR=CLEAR_BLOCK,
            num_warps=4,
            num_stages=1,
        )
        launch(
            latent_stats_fold_kernel,
            (triton.cdiv(latents, FOLD_BLOCK),),
            *(
                table,
                None if labels is None else labels[start:],
                group,
                call.first_image + start,
                tokens_per_image,
                latents,
            ),
            *(*call.totals, class_counts),
            BLOCK=FOLD_BLOCK,
            LABELS=class_counts is not None,
            num_warps=4,
            num_stages=1,
        )


@triton.jit
def latent_stats_image_kernel(
    values,
    indices,
    indptr,
    table,
    tokens,
    latents,
    threshold,
    BLOCK: tl.constexpr,
    CLEAR: tl.constexpr,
):
    """One image's table ``[S]`` of records: the sum (float64), then (largest value, 65,535 - its token, tokens above).

    Latency: 197 rows, each a read-add-write of records that lie in the L2 (16 bytes, half a sector), about 0.4 us with
    the next row already on its way: 80 us; 128 images run side by side, on 128 of 132 multiprocessors. Clearing the
    tables writes 101 MB (25 us), updating them moves 2 x 120 MB through the L2.

    In a row all latents differ, so its lanes never meet. Rows follow each other through a barrier, which orders
    accesses to global memory among the threads of one program: PTX defines bar.sync so for all memory; on CDNA the
    wavefronts of a workgroup share one vector L1, and LLVM's memory model asks for nothing more at workgroup scope
    (except in thread-group split mode, which Triton does not use).
    """
    image = tl.program_id(0).to(tl.int64)
    records = table + image * latents * 2
    for place in range(0, 2 * latents, CLEAR):
        at = place + tl.arange(0, CLEAR)
        tl.store(records + at, tl.zeros([CLEAR], tl.int64), mask=at < 2 * latents)
    tl.debug_barrier()
    pointers = indptr + image * tokens
    lane = tl.arange(0, BLOCK)
    start = tl.load(pointers)
    end = tl.load(pointers + 1)
    index, value = _entries(values, indices, start, end, lane)
    for token in range(tokens):
        next_end = tl.load(pointers + token + 2, mask=token + 1 < tokens, other=0)
        next_index, next_value = _entries(values, indices, end, next_end, lane)
        _add_to_records(records, index, value, start + lane < end, token, threshold)
        for more in range(start + BLOCK, end, BLOCK):
            index, value = _entries(values, indices, more, end, lane)
            _add_to_records(records, index, value, more + lane < end, token, threshold)
        tl.debug_barrier()
        start, end, index, value = end, next_end, next_index, next_value


@triton.jit
def latent_stats_fold_kernel(
    table,
    labels,
    images,
    first_image,
    tokens,
    latents,
    sums,
    counts,
    image_counts,
    max_values,
    max_position,
    class_counts,
    BLOCK: tl.constexpr,
    LABELS: tl.constexpr,
):
    """Add the tables of a group of images to the totals of a block of latents, image after image.

    Memory: 101 MB of records read once, 21 us at 4.8 TB/s. Four images are read before the first is added, so that
    49,152 threads keep 3 MB in flight. Class counts are integer atomics: order-free, and nobody waits for them.
    """
    latent = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = latent < latents
    total = tl.load(sums + latent, mask=inside, other=0.0)
    above = tl.load(counts + latent, mask=inside, other=0)
    seen = tl.load(image_counts + latent, mask=inside, other=0)
    best = tl.load(max_values + latent, mask=inside, other=0.0)
    where = tl.load(max_position + latent, mask=inside, other=-1)
    for group in range(0, images, 4):
        sum0, key0 = _records(table, latent, latents, group, images)
        sum1, key1 = _records(table, latent, latents, group + 1, images)
        sum2, key2 = _records(table, latent, latents, group + 2, images)
        sum3, key3 = _records(table, latent, latents, group + 3, images)
        # A group's missing images have empty records, and adding 0 changes no total.
        total = total + sum0 + sum1 + sum2 + sum3
        for part in tl.static_range(4):
            key = key0 if part == 0 else (key1 if part == 1 else (key2 if part == 2 else key3))
            image = group + part
            over = key & 0xFFFF
            value = (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)
            position = tl.cast(first_image + image, tl.int64) * tokens + (0xFFFF - ((key >> 16) & 0xFFFF))
            fired = value > 0
            above += over
            seen += fired.to(tl.int64)
            better = fired & ((value > best) | ((value == best) & (position < where)))
            best = tl.where(better, value, best)
            where = tl.where(better, position, where)
            if LABELS:
                label = tl.load(labels + tl.minimum(image, images - 1))
                counted = tl.where(label >= 0, over, 0)
                tl.atomic_add(class_counts + label * latents + latent, counted, mask=counted > 0, sem="relaxed")
    tl.store(sums + latent, total, mask=inside)
    tl.store(counts + latent, above, mask=inside)
    tl.store(image_counts + latent, seen, mask=inside)
    tl.store(max_values + latent, best, mask=inside)
    tl.store(max_position + latent, where, mask=inside)


@triton.jit
def _entries(values, indices, start, end, lane):
    """Latents and values of up to a block of a row's entries."""
    at = start + lane
    inside = at < end
    index = tl.load(indices + at, mask=inside, other=0)
    value = tl.load(values + at, mask=inside, other=0.0).to(tl.float32)
    return index, value


@triton.jit
def _add_to_records(records, index, value, inside, token, threshold):
    """Read, add and write the records of distinct latents; both halves of a record are one 16-byte access."""
    place = records + index.to(tl.int64)[:, None] * 2 + tl.arange(0, 2)[None, :]
    mask = inside[:, None] & (tl.arange(0, 2)[None, :] < 2)
    total, key = tl.split(tl.load(place, mask=mask, other=0))
    total = (total.to(tl.float64, bitcast=True) + value.to(tl.float64)).to(tl.int64, bitcast=True)
    bits = value.to(tl.int32, bitcast=True).to(tl.int64)
    candidate = tl.where(value > 0, (bits << 16) | (0xFFFF - token), 0)
    over = (key & 0xFFFF) + (value > threshold).to(tl.int64)
    key = (tl.maximum(key >> 16, candidate) << 16) | over
    tl.store(place, tl.join(total, key), mask=mask)


@triton.jit
def _records(table, latent, latents, image, images):
    """Sums and keys of a block of latents of one image; zeros behind the last image."""
    half = tl.arange(0, 2)[None, :]
    place = table + (tl.cast(image, tl.int64) * latents + latent)[:, None] * 2 + half
    end = tl.where(image < images, latents, 0)
    total, key = tl.split(tl.load(place, mask=(latent < end)[:, None] & (half < 2), other=0))
    return total.to(tl.float64, bitcast=True), key

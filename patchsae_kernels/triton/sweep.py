"""The masking sweep on a GPU: all 2K reconstructions in one pass over the non-zeros.

The keep sets are nested, so each entry lies in one of K + 1 segments between consecutive ks. One kernel puts the
entries of each token in the order of their segments (12 bytes read, 8 written an entry: 75 MB a paper batch); a
second gathers each row once, as `patchsae_kernels.triton.decode` does, and writes the running sums of the segments:
2 K D floats a token, 61 KB at K = 10 against 229 KB (bfloat16) gathered.

The sums from the back are known only when the last segment is, and 2K of them do not fit in registers: the
segments' own sums wait in the memory of ``off``, which is still in the L2 when the same program picks them up.
Multiplying with a 2K-row selection on tensor cores would need no segments, but 2K times the arithmetic, and three
bfloat16 terms to carry a float32 value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.calls import SweepCall
from patchsae_kernels.triton.decode import add_rows, adjacent, class_row, decode_launch, serves, slices
from patchsae_kernels.triton.launch import launch

__all__ = ["decode_sweep", "serves", "sweep_segments"]
MOST_KS = 127
"""ks of one pass over the non-zeros."""

SEGMENT_TILE = 1024
"""Entries times segments compared at once: 32 numbers a lane, several times over."""

NEVER = tl.constexpr(2**31 - 1)


def decode_sweep(call: SweepCall) -> tuple[Tensor, Tensor]:
    """``on, off``, each ``[K, N, D]`` float32: ``on[i]`` keeps latents with ``rank < ks[i]``, ``off[i]`` drops them.

    A token of a class not in 0..C-1 is NaN. ``ks`` come in any order, repeated, 0 or beyond S; more than 127 take
    another pass over the non-zeros.
    """
    ks, rank = call.ks, call.rank
    on = call.W_dec.new_empty(len(ks), call.tokens, call.W_dec.shape[1], dtype=torch.float32)
    off = torch.empty_like(on)
    order = sorted(range(len(ks)), key=ks.__getitem__)
    for first in range(0, len(ks), MOST_KS):
        slots = order[first : first + MOST_KS]
        cuts, places = _on_device([min(ks[i], 2**31 - 2) for i in slots] + slots, rank.device).split(len(slots))
        segments = sweep_segments(*call.csr, rank, cuts, call.class_ids)
        _running_sums(call, segments, places, on, off)
    return on, off


def sweep_segments(
    values: Tensor, indices: Tensor, indptr: Tensor, rank: Tensor, cuts: Tensor, class_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """CSR with K + 1 rows a token, row (n, j) the entries of token n whose rank lies between cuts j - 1 and j.

    ``cuts`` is int32 ``[K]``, ascending; N > 0. Within a row the entries keep their order. The same as
    `patchsae_kernels.reference.sweep_segments`.
    """
    tokens, count = indptr.shape[0] - 1, cuts.shape[0]
    by_segment = values.new_empty(values.shape), indices.new_empty(indices.shape)
    pointers = indptr.new_empty(tokens * (count + 1) + 1)
    segments = max(16, triton.next_power_of_2(count + 1))
    launch(
        decode_sweep_segments_kernel,
        (tokens,),
        values.contiguous(),
        indices.contiguous(),
        indptr.contiguous(),
        rank.contiguous(),
        None if class_ids is None else class_ids.contiguous(),
        cuts,
        *by_segment,
        pointers,
        rank.shape[-1],
        rank.shape[0],
        count,
        BLOCK=SEGMENT_TILE // segments,
        SEGMENTS=segments,
        num_warps=1,
        num_stages=1,
    )
    return *by_segment, pointers


def _running_sums(
    call: SweepCall, segments: tuple[Tensor, Tensor, Tensor], places: Tensor, on: Tensor, off: Tensor
) -> None:
    tokens, width = on.shape[1:]
    config, class_ids = decode_launch(width, call.W_dec.dtype), call.class_ids
    W_dec = adjacent(call.W_dec)
    launch(
        decode_sweep_kernel,
        (tokens, slices(W_dec)),
        *segments,
        places,
        None if class_ids is None else class_ids.contiguous(),
        W_dec,
        call.b_dec.contiguous(),
        on,
        off,
        tokens,
        call.rank.shape[0],
        places.shape[0],
        D=width,
        W_STRIDE=W_dec.stride(0),
        ROWS=config.rows,
        BLOCK_D=config.block_d,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _on_device(numbers: list[int], device: torch.device) -> Tensor:
    """int32, sent as arguments of a kernel: a copy from the host would synchronise and could not be captured."""
    tensor = torch.zeros(len(numbers), dtype=torch.int32, device=device)
    torch._foreach_add_(tensor.unbind(), numbers)
    return tensor


@triton.jit
def decode_sweep_segments_kernel(
    values,
    indices,
    indptr,
    rank,
    class_ids,
    cuts,
    out_values,
    out_indices,
    out_indptr,
    S,
    classes,
    K,
    BLOCK: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """One program sorts one token's entries by segment, stably: count those before each segment, then place."""
    token = tl.program_id(0).to(tl.int64)
    begin = tl.load(indptr + token)
    count = (tl.load(indptr + token + 1) - begin).to(tl.int32)
    if class_ids is not None:
        row, known = class_row(class_ids + token, classes)
        rank += row * S
        ranked = tl.where(known, S, 0)
    else:
        ranked = S
    segment = tl.arange(0, SEGMENTS)
    low = tl.load(cuts + segment - 1, mask=(segment > 0) & (segment <= K), other=NEVER)
    low = tl.where(segment == 0, -NEVER - 1, low)[None, :]  # [1, SEG]: segment j holds ranks low..high-1
    high = tl.load(cuts + segment, mask=segment < K, other=NEVER)[None, :]

    place = tl.zeros([SEGMENTS], tl.int32)
    for start in range(0, count, BLOCK):
        latent, there, position = ranked_entries(indices + begin, rank, start, count, ranked, BLOCK)
        place += tl.sum((there[:, None] & (position[:, None] < low)).to(tl.int32), 0)
    row = token * (K + 1)
    tl.store(out_indptr + row + segment, begin + place, mask=segment <= K)
    if token == tl.num_programs(0) - 1:
        tl.store(out_indptr + row + K + 1, begin + count)

    for start in range(0, count, BLOCK):
        latent, there, position = ranked_entries(indices + begin, rank, start, count, ranked, BLOCK)
        position = position[:, None]
        member = (there[:, None] & (position >= low) & (position < high)).to(tl.int32)  # [B, SEG], one 1 a row
        earlier = tl.cumsum(member, 0) - member
        target = begin + tl.sum(member * (place[None, :] + earlier), 1)
        value = tl.load(values + begin + start + tl.arange(0, BLOCK), mask=there)
        tl.store(out_values + target, value, mask=there)
        tl.store(out_indices + target, latent, mask=there)
        place += tl.sum(member, 0)


@triton.jit
def ranked_entries(indices, rank, start, count, ranked, BLOCK: tl.constexpr):
    """Latents and ranks of BLOCK entries from ``start`` on, and which of them there are. Without a rank: 0."""
    entry = start + tl.arange(0, BLOCK)
    there = entry < count
    latent = tl.load(indices + entry, mask=there, other=0)
    position = tl.load(rank + latent, mask=there & (latent >= 0) & (latent < ranked), other=0)
    return latent, there, tl.minimum(position, NEVER - 1)


@triton.jit
def decode_sweep_kernel(
    values,
    indices,
    indptr,
    places,
    class_ids,
    W_dec,
    b_dec,
    on,
    off,
    tokens,
    classes,
    K,
    D: tl.constexpr,
    W_STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program is one slice of one token in all 2K reconstructions."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)  # [BD]
    inside = columns < D
    front = tl.load(b_dec + columns, mask=inside, other=0.0)
    if class_ids is not None:
        _row, known = class_row(class_ids + token, classes)
        front = tl.where(known, front, float("nan"))
    back = front
    on += token * D + columns  # layer (place) * tokens * D passes 2^31
    off += token * D + columns
    indptr += token * (K + 1)
    begin = tl.load(indptr)
    for segment in range(K + 1):
        end = tl.load(indptr + segment + 1)
        count = (end - begin).to(tl.int32)
        part, _l1 = add_rows(
            values + begin, indices + begin, count, None, W_dec, columns, D, W_STRIDE, ROWS, 1, BLOCK_D
        )
        begin = end
        front += part
        if segment < K:
            tl.store(on + tl.load(places + segment).to(tl.int64) * tokens * D, front, mask=inside, cache_modifier=".cs")
        if segment > 0:
            tl.store(off + tl.load(places + segment - 1).to(tl.int64) * tokens * D, part, mask=inside)
    tl.debug_barrier()  # what a lane picks up may have been parked by another lane
    for step in range(K):
        address = off + tl.load(places + K - 1 - step).to(tl.int64) * tokens * D
        back += tl.load(address, mask=inside, other=0.0)
        tl.store(address, back, mask=inside, cache_modifier=".cs")

"""What the ops that `benches.gpu` times start at one size, followed through the host code that a GPU runs.

What the host reads of the device is answered here: how many entries an encode has found, and that none is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
import triton
from torch import Tensor

from benches.gpu import small
from patchsae_kernels import checks
from patchsae_kernels.calls import (
    AdamCall,
    BoundedEncodeCall,
    DecodeBackwardCall,
    DecodeCall,
    EncodeBackwardCall,
    EncodeCall,
    MaskedDecodeCall,
    ReconstructCall,
    StatsCall,
    StepCall,
    SweepCall,
)
from patchsae_kernels.triton import (
    adam,
    backward,
    batch_topk,
    decode,
    encode,
    ghost,
    pack,
    reconstruct,
    stats,
    step,
    sweep,
    tuning,
)
from tests.gate.arguments import BUDGET, F32, Size, csr, i32, i64, meta

L1, CLS_WEIGHT, RATE = 8e-5, 1.0, 4e-4


@contextmanager
def answered(entries: int) -> Iterator[None]:
    """Every encode inside finds ``entries`` active latents, and room for every token."""
    found = mock.patch.object(encode, "read_status", return_value=(entries, 0))
    with found, mock.patch.object(checks, "finite_latents"):
        yield


def encoder(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """W_enc (stored latent-major), b_enc, b_dec."""
    return meta(size.latents, size.width).t(), meta(size.latents), meta(size.width)


def threshold(size: Size, activation: str) -> Tensor | None:
    return meta(size.latents) if activation == "jumprelu" else None


def entries(size: Size, k: int, active: int) -> tuple[int, ...]:
    """Entries that fit what an encode first makes room for, and for ReLU one more than do, an odd number."""
    if k:
        return (size.tokens * min(k, size.latents),)
    return size.tokens * min(active, size.latents), size.tokens * min(encode.EXPECTED, size.latents) + 1


def encoded(
    size: Size,
    activation: str,
    k: int,
    precision: str,
    active: int,
    dtype: torch.dtype = F32,
    product: str | None = None,
    tile: tuning.Tile | None = None,
) -> None:
    """`pk.encode`; BatchTopK in two rounds."""
    x, weights = meta(size.tokens, size.width, dtype=dtype), encoder(size)
    rounds = [min(factor * k, size.latents) for factor in (4, 8)] if activation == "batchtopk" else [k]
    with tuning.override(product=product, tile=tile):
        for most in rounds:
            for found in entries(size, most, active):
                with answered(found):
                    options = threshold(size, activation), "topk" if most else activation, most, precision, BUDGET
                    encode.encode(EncodeCall(x, *weights, [], *options))
    if activation == "batchtopk":
        batch_topk.batch_topk(*csr(size, min(4 * k, size.latents)), k * size.tokens)


def bounded(size: Size, activation: str, k: int, precision: str, capacity: int) -> None:
    """`pk.encode_bounded`, and `pk.decode` of what it returns."""
    x, weights = meta(size.tokens, size.width), encoder(size)
    *z, _ = encode.encode_bounded(BoundedEncodeCall(x, *weights, [], None, activation, k, precision, BUDGET, capacity))
    decode.decode(DecodeCall(*z, meta(size.latents, size.width), weights[2]))


def reconstructed(size: Size, activation: str, k: int, precision: str, dictionary: torch.dtype) -> None:
    """`pk.reconstruct`, and its second way, where a chunk has more entries than it has places."""
    W_dec, x = meta(size.latents, size.width, dtype=dictionary), meta(size.tokens, size.width)
    options = threshold(size, activation), activation, k, precision, BUDGET
    for found in (0, size.tokens * size.latents):
        with answered(found):
            reconstruct.reconstruct(ReconstructCall(x, *encoder(size), [], *options, W_dec=W_dec))


def decoded(size: Size, dictionary: torch.dtype, classes: int, ks: tuple[int, ...], active: int) -> None:
    """`pk.decode`, `pk.decode_masked` with one set of latents and with one a class, `pk.decode_sweep`."""
    z, W = csr(size, active), (meta(size.latents, size.width, dtype=dictionary), meta(size.width))
    keep, rank, ids = meta(classes, size.latents, dtype=torch.bool), i32(classes, size.latents), i64(size.tokens)
    decode.decode(DecodeCall(*z, *W))
    decode.decode_masked(MaskedDecodeCall(*z, *W, keep, ids))
    decode.decode_masked(MaskedDecodeCall(*z, *W, keep[0], None))
    sweep.decode_sweep(SweepCall(*z, *W, rank, list(ks), ids))


def statistics(size: Size, tokens_per_image: int, classes: int, active: int) -> None:
    """`pk.latent_stats`."""
    sums, counts, images = meta(size.latents, dtype=torch.float64), i64(size.latents), i64(size.latents)
    totals = (sums, counts, images, meta(size.latents), i64(size.latents), i64(classes, size.latents))
    labels = i64(size.tokens // tokens_per_image)
    stats.latent_stats_(StatsCall(*csr(size, active), tokens_per_image, 0.2, labels, 0, *totals))


def stepped(size: Size, tokens_per_image: int, precision: str, active: int, dead: int, budget: int = BUDGET) -> None:
    """`pk.sae_step` with ``dead`` dead latents, sparse at ``active`` a token and dense."""
    W_enc, b_enc, b_dec = encoder(size)
    latents = i64(dead) if dead else None
    weights = (W_enc, b_enc, meta(size.latents, size.width), b_dec)
    x, options = meta(size.tokens, size.width), (L1, CLS_WEIGHT, tokens_per_image)
    share = active / size.latents
    for rows in {chunk.stop - chunk.start for chunk in step.sparse_chunks(size.tokens, size.width, active, budget)}:
        for found in entries(Size("chunk", rows, size.latents, size.width), 0, active):
            with answered(found):
                step.sae_step(StepCall(x, *weights, latents, *options, budget, precision, None, share, "sparse"))
    call = StepCall(x, *weights, latents, *options, budget, precision)
    held = step.Step(call, None if latents is None else ghost.Dead(latents))
    chunks = step.dense_chunks(size.tokens, size.latents, budget, precision)
    for chunk in (chunks[0], chunks[-1]):
        held.add_dense(chunk)
    held.finish(W_enc, weights[2])


def recorded(size: Size, tokens_per_image: int, capacity: int, dead_capacity: int, moments: torch.dtype) -> None:
    """What `pk.StepGraph` records."""
    W_enc, b_enc, b_dec = encoder(size)
    W_dec, dead = meta(size.latents, size.width), meta(size.latents, dtype=torch.bool)
    packed = pack.pack(W_enc, b_enc, "exact")
    weights, options = (W_enc, b_enc, W_dec, b_dec), (L1, CLS_WEIGHT, tokens_per_image, BUDGET, "exact")
    call = StepCall(meta(size.tokens, size.width), *weights, None, *options, packed)
    step.bounded_step(call, dead, capacity, dead_capacity)
    for number, weight in enumerate(weights):
        held = [torch.empty_like(weight, dtype=moments) for _ in range(2)]
        extras = adam.Extras(i32(4, 4)[number], packed if number == 0 else None)
        adam.adam_with(extras, AdamCall(weight, weight, *held, 1, 0.0, 0.9, 0.999, 1e-8, number == 2))


def optimised(size: Size, moments: torch.dtype, packed: bool) -> None:
    """`pk.adam_step` of all parameters."""
    W_enc, b_enc, b_dec = encoder(size)
    rows = pack.pack(W_enc, b_enc, "exact") if packed else None
    for number, weight in enumerate((W_enc, b_enc, meta(size.latents, size.width), b_dec)):
        held = [torch.empty_like(weight, dtype=moments) for _ in range(2)]
        extras = adam.Extras(packed=rows if number == 0 else None)
        adam.adam_with(extras, AdamCall(weight, weight, *held, 7, RATE, 0.9, 0.999, 1e-8, number == 2))


def differentiated(size: Size, active: int) -> None:
    """Gradients of `pk.encode` and `pk.decode` through autograd."""
    values, *pattern = csr(size, active)
    x, (W_enc, _, b_dec), W_dec = meta(size.tokens, size.width), encoder(size), meta(size.latents, size.width)
    backward.decode_backward(DecodeBackwardCall(x, values, *pattern, W_dec, BUDGET))
    backward.encode_backward(EncodeBackwardCall(values, *pattern, x, W_enc, b_dec, False))


def screened(size: Size) -> None:
    encode.screening_report(meta(size.tokens, size.width), *encoder(size))


def repaired(size: Size, activation: str, k: int, precision: str) -> None:
    """What encode does again for tokens that found no room: one, a few, or a multiple of what alignment looks at."""
    W_enc, b_enc, b_dec = encoder(size)
    options = threshold(size, activation), activation, k, precision, BUDGET
    call = encode.request(EncodeCall(meta(0, size.width), W_enc, b_enc, b_dec, [], *options))
    exact = replace(call, weights=pack.pack(W_enc, b_enc, "fp32"), precision="fp32") if call.exact else call
    slots = triton.next_power_of_2(call.weights.low.shape[0]) if k else call.slots
    for again in (replace(call, places=call.slots), replace(exact, slots=slots, fused=True)):
        for rows in (1, 5, 16):
            for capacity in (rows * (k or call.slots), 2 * rows * call.slots + 1):
                with answered(capacity):
                    encode._again(meta(rows, size.width), W_enc, b_enc, again)


def crowded(size: Size, activation: str, k: int, precision: str, active: int) -> None:
    """An encode with few places."""
    with small.fewer_places():
        encoded(size, activation, k, precision, active)
        repaired(size, activation, k, precision)


def revived(size: Size, k: int) -> None:
    """`pk.reconstruct_dead` and its gradients; the latents of ``size`` are the dead ones."""
    encoded(size, "topk", k, "exact", k)
    decode.decode(DecodeCall(*csr(size, k), meta(size.latents, size.width), meta(size.width)))
    differentiated(size, k)

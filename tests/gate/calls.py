"""Which host functions are followed, with which arguments. A kernel that no call starts fails the gate.

Shapes are those of the paper (25,216 tokens = 128 images of 197, 768 channels, 49,152 latents, 149 active a token), of
its larger models, small ones that leave tails in every block, and those of `benches.gpu`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from benches.gpu import sizes, small
from patchsae_kernels.calls import (
    AdamCall,
    BoundedEncodeCall,
    DecodeBackwardCall,
    DecodeCall,
    EncodeBackwardCall,
    EncodeCall,
    MaskedDecodeCall,
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
    library,
    pack,
    product,
    stats,
    step,
    sweep,
)
from tests.gate.arguments import (
    BF16,
    BUDGET,
    CLASSES,
    F16,
    F32,
    KS,
    LARGE,
    ONE,
    PAPER,
    TAILS,
    WIDE,
    Call,
    Size,
    csr,
    i32,
    i64,
    meta,
    name_of,
    slice_of_csr,
)
from tests.gate.bench_calls import bench_calls


def calls_of_decode() -> list[Call]:
    calls = []
    for size, values, weights in (
        (PAPER, F32, F32),
        (PAPER, F32, BF16),
        (PAPER, BF16, BF16),
        (LARGE, F32, BF16),
        (TAILS, F32, F32),
        (ONE, F32, F32),
        (WIDE, F32, F32),
        (WIDE, F32, BF16),
    ):
        rows = slice_of_csr(size) if size is TAILS else csr(size, dtype=values)
        words = f"{size.name} {name_of(values)} {name_of(weights)}"
        held = (*rows, meta(size.latents, size.width, dtype=weights), meta(size.width))
        keep, rank = meta(size.latents, dtype=torch.bool), i32(size.latents)
        class_keep, class_rank = meta(CLASSES, size.latents, dtype=torch.bool), i32(CLASSES, size.latents)
        ids, x = i64(size.tokens), meta(size.tokens, size.width)
        calls += [
            Call(f"{name} {words}", function, arguments, slow=size is not PAPER)
            for name, function, arguments in (
                ("decode", decode.decode, (DecodeCall(*held),)),
                ("decode_masked", decode.decode_masked, (MaskedDecodeCall(*held, keep, None),)),
                ("decode_masked, classes,", decode.decode_masked, (MaskedDecodeCall(*held, class_keep, ids),)),
                ("decode_with_losses", decode.decode_with_losses, (DecodeCall(*held), x)),
                ("decode_sweep", sweep.decode_sweep, (SweepCall(*held, rank, KS, None),)),
                ("decode_sweep, classes,", sweep.decode_sweep, (SweepCall(*held, class_rank, KS, ids),)),
            )
        ]
    matrices = meta(PAPER.latents, PAPER.width), meta(PAPER.width)
    for dtype in (BF16, F16):
        x = meta(PAPER.tokens, PAPER.width, dtype=dtype)
        arguments = (DecodeCall(*csr(PAPER), *matrices), x)
        calls.append(Call(f"decode_with_losses {name_of(dtype)} tokens", decode.decode_with_losses, arguments))
    for count in (1, 127, 128):
        call = SweepCall(*csr(PAPER), *matrices, i32(PAPER.latents), list(range(count)), None)
        calls.append(Call(f"decode_sweep {count} ks", sweep.decode_sweep, (call,)))
    return calls


def calls_of_stats() -> list[Call]:
    calls = []
    for size, dtype, labelled in ((PAPER, F32, False), (PAPER, F32, True), (PAPER, BF16, True), (TAILS, F32, True)):
        rows = slice_of_csr(size) if size is TAILS else csr(size, dtype=dtype)
        tokens_per_image = 1 if size is TAILS else 197
        labels = i64(size.tokens // tokens_per_image) if labelled else None
        classes = i64(CLASSES, size.latents) if labelled else None
        sums, counts, images = meta(size.latents, dtype=torch.float64), i64(size.latents), i64(size.latents)
        best, place = meta(size.latents), i64(size.latents)
        call = StatsCall(*rows, tokens_per_image, 0.2, labels, 128, sums, counts, images, best, place, classes)
        name = f"latent_stats {size.name} {name_of(dtype)} {'labels' if labelled else ''}"
        calls.append(Call(name, stats.latent_stats_, (call,), slow=size is not PAPER))
    return calls


def calls_of_backward() -> list[Call]:
    calls = []
    for size, dtype in ((PAPER, F32), (PAPER, BF16), (LARGE, F32), (TAILS, F32), (WIDE, F32)):
        values, *pattern = slice_of_csr(size) if size is TAILS else csr(size)
        x, W, b_dec = meta(size.tokens, size.width, dtype=dtype), meta(size.latents, size.width), meta(size.width)
        words = f"{size.name} {name_of(dtype)}"
        call = EncodeBackwardCall(values, *pattern, x, W.t(), b_dec)
        calls.append(Call(f"encode_backward {words}", backward.encode_backward, (call,), slow=size is not PAPER))
        if dtype == F32:
            other = DecodeBackwardCall(x, values, *pattern, W, BUDGET)
            calls.append(Call(f"decode_backward {words}", backward.decode_backward, (other,), slow=size is not PAPER))
    return calls


def calls_of_adam() -> list[Call]:
    calls = []
    for size in (PAPER, LARGE, TAILS, WIDE):
        rows, bias = meta(size.latents, size.width), meta(size.latents)
        for parameter, unit_rows in ((rows, True), (rows.t(), False), (rows[:, :-1], False), (bias, False)):
            call = AdamCall(*(parameter for _ in range(4)), 7, 4e-4, 0.9, 0.999, 1e-8, unit_rows)
            name = f"adam {size.name} {tuple(parameter.shape)} {'unit rows' if unit_rows else ''}"
            calls.append(Call(name, adam.adam_step_, (call,), slow=size is not PAPER))
        calls += [
            Call(f"adam {size.name} {precision} packed", packing_adam, (size, precision), slow=size is not PAPER)
            for precision in ("exact", "bf16")
        ]
    return calls


def packing_adam(size: Size, precision: str) -> None:
    """As a captured step calls it: the rows packed in the same pass, constants from the device, bfloat16 moments."""
    rows, moments = meta(size.latents, size.width), meta(size.latents, size.width, dtype=BF16)
    packed = pack.pack(rows.t(), meta(size.latents), precision)
    for held in (moments, rows):
        for extras in (adam.Extras(packed=packed), adam.Extras(i32(4), packed)):
            adam.adam_with(extras, AdamCall(rows.t(), rows.t(), held.t(), held.t(), 7, 4e-4, 0.9, 0.999, 1e-8, False))
    adam.adam_with(adam.Extras(i32(4)), AdamCall(rows, rows, moments, moments, 7, 4e-4, 0.9, 0.999, 1e-8, True))


def calls_of_step() -> list[Call]:
    return [
        Call(f"step {name}, {size.name} {precision}", function, (size, precision), slow=size is not PAPER)
        for size in (PAPER, LARGE, TAILS, WIDE)
        for name, function in (("sparse", sparse_step), ("dense", dense_step), ("bounded", bounded_step))
        for precision in ("exact", "bf16")
    ]


def sparse_step(size: Size, precision: str) -> None:
    """What follows the encode of a sparse step in two chunks, without the reads of the device."""
    held, half = new_step(size, precision), Size("half", size.tokens // 2, size.latents, size.width)
    for first in (0, half.tokens):
        held.add_sparse(slice(first, first + half.tokens), *csr(half))


def dense_step(size: Size, precision: str) -> None:
    held = new_step(size, precision)
    for rows in step.dense_chunks(size.tokens, size.latents, BUDGET, precision)[:1]:
        held.add_dense(rows)


def bounded_step(size: Size, precision: str) -> None:
    W_enc, b_enc, b_dec = encoder(size)
    weights = (W_enc, b_enc, meta(size.latents, size.width), b_dec)
    room = size.tokens * 256, size.latents // 8
    dead = meta(size.latents, dtype=torch.bool)
    x = meta(size.tokens, size.width)
    step.bounded_step(StepCall(x, *weights, None, 8e-5, 1.0, 197, BUDGET, precision), dead, *room)


def new_step(size: Size, precision: str) -> step.Step:
    W_enc, b_enc, b_dec = encoder(size)
    x, W_dec = meta(size.tokens, size.width), meta(size.latents, size.width)
    call = StepCall(x, W_enc, b_enc, W_dec, b_dec, None, 8e-5, 1.0, 197, BUDGET, precision)
    return step.Step(call, ghost.Dead(i64(size.latents // 5)))


def calls_of_batch_topk() -> list[Call]:
    return [
        Call(
            f"batch_topk {size.name} {name_of(dtype)}",
            batch_topk.batch_topk,
            (*csr(size, dtype=dtype), 64 * size.tokens),
            slow=size is not PAPER,
        )
        for size, dtype in ((PAPER, F32), (PAPER, BF16), (TAILS, F32), (ONE, F32))
    ]


def calls_of_encode() -> list[Call]:
    """encode_bounded is all of encode without the reads of the device; a repair repeats it with other settings."""
    paper = [
        encode_call(PAPER, F32, activation, k, precision)
        for activation, k in (("relu", 0), ("jumprelu", 0), ("topk", 64))
        for precision in ("exact", "bf16", "fp32")
    ]
    tokens = [
        encode_call(PAPER, dtype, "relu", 0, precision)
        for dtype in (BF16, F16)
        for precision in ("exact", "bf16", "fp32")
    ]
    others = [
        encode_call(size, F32, activation, k, "exact")
        for size in (LARGE, TAILS, ONE)
        for activation, k in (("relu", 0), ("topk", 64))
    ]
    many = [encode_call(PAPER, F32, "topk", 512, "exact"), encode_call(LARGE, BF16, "topk", 512, "bf16")]
    return [*paper, *tokens, *others, *many, *map(repair_call, (0, 64))]


def encode_call(size: Size, dtype: torch.dtype, activation: str, k: int, precision: str) -> Call:
    threshold = meta(size.latents) if activation == "jumprelu" else None
    x = meta(size.tokens, size.width, dtype=dtype)
    call = BoundedEncodeCall(x, *encoder(size), [], threshold, activation, k, precision, BUDGET, size.tokens * 512)
    name = f"encode {size.name} {name_of(dtype)} {activation} {k or ''} {precision}"
    return Call(name, encode.encode_bounded, (call,), slow=size is not PAPER)


def repair_call(k: int) -> Call:
    return Call(f"encode repair {k or ''}", repair, (meta(5, PAPER.width), *encoder(PAPER), k))


def repair(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> None:
    """What encode does for tokens with more candidates than slots: float32, every latent a possible candidate."""
    slots = triton.next_power_of_2(W_enc.shape[1])
    call = EncodeCall(x, W_enc, b_enc, b_dec, [], None, "topk" if k else "relu", k, "fp32", BUDGET)
    encode.encode_into(x, replace(encode.request(call), fused=True, slots=slots), x.shape[0] * 512)


def encoder(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """W_enc (stored latent-major), b_enc, b_dec."""
    return meta(size.latents, size.width).t(), meta(size.latents), meta(size.width)


def calls_of_product() -> list[Call]:
    """Both designs, for every dtype that one of them multiplies."""
    rows, size = 2048, PAPER
    buckets = size.latents // 32
    calls = []
    for dtype in (F16, BF16, F32):
        low, weight = meta(rows, size.width, dtype=dtype), meta(size.latents, size.width, dtype=dtype)
        terms, bias, chunk = meta(rows, 3), meta(size.latents), meta(rows, size.latents, dtype=dtype)
        maxima = (low, weight, terms, bias, chunk, meta(rows, buckets))
        bounds, kept = (meta(3, buckets), None) if dtype == F16 else (meta(size.latents), chunk)
        hits = (low, weight, terms, bias, bounds, i32(rows, buckets), kept)
        calls += [
            Call(f"fused_hits {name_of(dtype)}", product.fused_hits, hits),
            Call(f"fused_maxima {name_of(dtype)}", product.fused_maxima, maxima),
            Call(f"library_maxima {name_of(dtype)}", library.library_maxima, maxima),
        ]
        if kept is not None:
            hits = (low, weight, bounds, i32(rows, buckets), kept)
            calls.append(Call(f"library_hits {name_of(dtype)}", library.library_hits, hits))
    return calls


def calls_of_wide_encode() -> list[Call]:
    return [
        encode_call(WIDE, F32, activation, k, precision)
        for activation, k in (("relu", 0), ("topk", 64))
        for precision in ("exact", "bf16", "fp32")
    ]


CALLS = (
    *calls_of_encode(),
    *calls_of_wide_encode(),
    *calls_of_product(),
    *calls_of_decode(),
    *calls_of_backward(),
    *calls_of_adam(),
    *calls_of_step(),
    *calls_of_stats(),
    *calls_of_batch_topk(),
    *bench_calls(sizes.PAPER, small.SMALL),
)

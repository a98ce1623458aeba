"""What `benches.gpu` starts at a size of its own: its problem, parts of it, shapes that fit no tile, the sanitizer's.

A kernel that does not compile would cost a stage of a run on a GPU, and one that is not known beforehand would be
compiled inside it: ``benches.gpu.warming`` takes these calls as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benches.gpu import sizes
from patchsae_kernels.triton import tuning
from tests.gate import bench_work as work
from tests.gate.arguments import BF16, F16, F32, Call, Size

PART = "sm_90"
"""The part that the bench is for, and that it has tiles to time of."""
PRECISIONS = ("exact", "bf16", "fp32")


def bench_calls(size: sizes.Scale, small_size: sizes.Scale) -> list[Call]:
    """Every call at one size of the bench and at that of the sanitizer."""
    whole = size_of("bench", size)
    first = 2 * whole.tokens // 5 | 1  # where `determinism` cuts a batch
    return [
        *problem(size, whole),
        *designs(size, whole),
        *(one for n in (first, whole.tokens - first) for one in cut(size, named(whole, f"bench cut {n}", n))),
        *part(size, named(whole, "bench dense start", size.dense_images * size.tokens)),
        *part(size, named(whole, "bench outliers", max(1, size.images // 8) * size.tokens)),
        *(one for s in size.awkward for one in part(size, Size(f"bench {tuple(s)}", s.n, s.s, s.d), PRECISIONS[:2])),
        *training(size, whole),
        *everything(small_size, size_of("bench small", small_size)),
    ]


def size_of(name: str, size: sizes.Scale) -> Size:
    return Size(name, size.n, size.d_sae, size.d_in)


def named(size: Size, name: str, tokens: int, latents: int = 0) -> Size:
    return Size(name, tokens, latents or size.latents, size.width)


def call(size: Size, function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
    words = [str(a) for a in (*arguments, *options.values()) if not isinstance(a, tuple)]
    name = " ".join([function.__name__, size.name, *words])
    return Call(name, function, (size, *arguments), options, slow=True, part=PART)


def encodes(size: sizes.Scale) -> Iterator[tuple[str, int]]:
    yield from (("relu", 0), ("jumprelu", 0), *(("topk", k) for k in size.topk), ("batchtopk", size.middle_k))


def problem(size: sizes.Scale, shape: Size) -> Iterator[Call]:
    """What does not train, in every precision: correctness, determinism, capture, the table."""
    l0, k = size.l0, size.middle_k
    for activation, most in encodes(size):
        for precision in PRECISIONS:
            yield call(shape, work.encoded, activation, most, precision, l0)
    for dtype in (BF16, F16):
        yield call(shape, work.encoded, "relu", 0, "exact", l0, dtype)
    for activation, most, precision in (("relu", 0, "exact"), ("relu", 0, "bf16"), ("topk", k, "bf16")):
        for capacity in (shape.tokens * l0 + shape.tokens, shape.tokens * l0 + 7):
            yield call(shape, work.bounded, activation, most, precision, capacity)
    for dictionary in (F32, BF16):
        yield call(shape, work.decoded, dictionary, size.classes, size.sweep, l0)
    yield call(shape, work.statistics, size.tokens, size.classes, l0)
    yield call(shape, work.screened)
    for precision in PRECISIONS:
        dictionary = BF16 if precision == "bf16" else F32
        yield call(shape, work.reconstructed, "relu", 0, precision, dictionary)
    yield call(shape, work.reconstructed, "topk", k, "exact", F32)


def designs(size: sizes.Scale, shape: Size) -> Iterator[Call]:
    """Both products, and the tiles worth timing."""
    kinds = [("relu", 0), *(("topk", k) for k in size.topk)]
    for activation, most in kinds:
        for precision in PRECISIONS:
            for product in tuning.PRODUCTS:
                yield call(shape, work.encoded, activation, most, precision, size.l0, product=product)
    for tile in tuning.PRODUCT_CANDIDATES[PART]:
        for precision in ("exact", "bf16"):
            yield call(shape, work.encoded, "relu", 0, precision, size.l0, product="fused", tile=tile)


def cut(size: sizes.Scale, shape: Size) -> Iterator[Call]:
    for activation, most in encodes(size):
        if activation != "batchtopk":
            yield call(shape, work.encoded, activation, most, "exact", size.l0)


def part(size: sizes.Scale, shape: Size, precisions: tuple[str, ...] = PRECISIONS) -> Iterator[Call]:
    """ReLU and top-k, tokens that find no room, and decode."""
    most = min(size.middle_k, shape.latents)
    for precision in precisions:
        for activation, k in (("relu", 0), ("topk", most)):
            yield call(shape, work.encoded, activation, k, precision, size.l0)
            yield call(shape, work.repaired, activation, k, precision)
    yield call(shape, work.decoded, F32, size.classes, size.sweep, size.l0)


def training(size: sizes.Scale, shape: Size) -> Iterator[Call]:
    for precision in ("exact", "bf16"):
        for dead in (0, shape.latents // 5):
            yield call(shape, work.stepped, size.tokens, precision, size.l0, dead)
    yield call(shape, work.recorded, size.tokens, int(1.25 * shape.tokens * size.l0) + shape.latents, 0, F32)
    yield call(shape, work.optimised, F32, False)
    yield call(shape, work.optimised, BF16, True)
    yield call(shape, work.differentiated, size.middle_k)


def everything(size: sizes.Scale, shape: Size) -> Iterator[Call]:
    """`benches.gpu.small`."""
    yield from problem(size, shape)
    yield from part(size, shape)
    yield from training(size, shape)
    yield call(shape, work.encoded, "topk", 32, "bf16", size.l0)
    for capacity in (0, 5, 4096):
        yield call(shape, work.bounded, "relu", 0, "exact", capacity)
    yield call(shape, work.stepped, size.tokens, "exact", size.l0, shape.latents // 5, int(0.05 * 2**20))
    yield call(shape, work.recorded, size.tokens, 5, 8, BF16)
    yield call(named(shape, "bench small dead", shape.tokens, shape.latents // 5), work.revived, 4)
    for activation, k in (("relu", 0), ("jumprelu", 0), ("topk", 8), ("topk", 32)):
        for precision in PRECISIONS:
            yield call(shape, work.crowded, activation, k, precision, size.l0)

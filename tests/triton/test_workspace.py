"""How a batch is cut, and how long any one program may take: read off the launches, on meta tensors."""

from __future__ import annotations

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st

import patchsae_kernels as pk
from patchsae_kernels.calls import BoundedEncodeCall, DecodeCall, EncodeCall, ReconstructCall
from patchsae_kernels.triton import decode, encode, reconstruct, tuning
from patchsae_kernels.triton import encode as fast
from patchsae_kernels.triton.launch import Launch, record
from patchsae_kernels.triton.workspace import TILE, chunk_rows, chunks
from tests.kernels.cases import assert_same, make_case

TOKENS, LATENTS, WIDTH = 2048, 49_152, 768
HEAVY = 2500
"""Active latents of the token with the most; a trained dictionary has 149 in the mean."""


@given(st.integers(0, 60_000), st.integers(1, 9_000))
def test_chunks_cover_all_tokens_and_are_equal_to_within_a_tile(tokens, rows):
    rows = rows if rows < TILE else rows // TILE * TILE
    cut = chunks(tokens, rows)
    assert [i for part in cut for i in (part.start, part.stop)][1:-1:2] == [part.start for part in cut][1:]
    sizes = [part.stop - part.start for part in cut]
    assert sum(sizes) == tokens
    assert max(sizes, default=0) <= rows
    assert all(size > 0 for size in sizes)
    unit = TILE if rows >= TILE else 1
    whole = [triton.cdiv(size, unit) for size in sizes]
    assert max(whole, default=0) - min(whole, default=0) <= 1
    assert len(cut) == triton.cdiv(triton.cdiv(tokens, unit), rows // unit)


@given(st.integers(0, 60_000), st.integers(1, 10**6), st.integers(0, 2**28))
def test_a_chunk_is_within_the_budget(tokens, row_bytes, budget):
    rows = chunk_rows(tokens, row_bytes, budget)
    assert rows >= 1
    assert rows * row_bytes <= budget or rows in (1, TILE)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def steps(launch: Launch, entries: int) -> int | None:
    """How many times a program goes through its loop for a token with so many entries; None: it has no such loop."""
    o, grid = launch.options, launch.grid
    block = o.get("BLOCK", 1)
    buckets = min(entries, LATENTS // 32)
    name = launch.kernel.fn.__name__
    if name == "gather_hits_kernel":
        return triton.cdiv(buckets, block * grid[1])
    if name == "rescore_kernel" and not o["SLOTS"]:
        places = launch.args[9]
        return triton.cdiv(places, block * grid[0])
    if name in ("settle_kernel", "write_kernel", "rescore_kernel"):
        return triton.cdiv(min(entries, o["SLOTS"] or entries), block)
    if name == "gather_kernel":
        return triton.cdiv(min(entries, o["MOST"]), block)
    if name in ("list_hits_kernel", "find_buckets_kernel"):
        return triton.cdiv(LATENTS // 32, block)
    if name == "decode_kernel":
        return triton.cdiv(min(entries, o["SEGMENT"]), o["ROWS"])
    if name in ("decode_join_kernel", "further_segments_kernel"):
        return triton.cdiv(entries, o["SEGMENT"]) - 1
    return None


BOUNDED = {
    "encode": {"list_hits_kernel", "gather_hits_kernel"},
    "exact": {"list_hits_kernel", "gather_hits_kernel", "rescore_kernel", "settle_kernel", "write_kernel"},
    "topk": {"find_buckets_kernel", "gather_kernel", "settle_kernel", "write_kernel"},
    "decode": {"decode_kernel", "decode_join_kernel", "further_segments_kernel"},
}


@pytest.mark.parametrize(
    ("activation", "k", "precision", "kinds"),
    [
        ("relu", 0, "exact", ["exact"]),
        ("relu", 0, "bf16", ["encode"]),
        ("relu", 0, "fp32", ["encode"]),
        ("jumprelu", 0, "exact", ["exact"]),
        ("jumprelu", 0, "bf16", ["encode"]),
        *(("topk", k, "bf16", ["topk"]) for k in (32, 64, 256)),
        *(("topk", k, "exact", ["topk"]) for k in (32, 64, 256)),
    ],
)
@pytest.mark.parametrize("part", ["sm_90", "gfx942"])
def test_no_program_of_an_encode_waits_long_for_one_token(activation, k, precision, kinds, part):
    x, W, b, b_dec = meta(TOKENS, WIDTH), meta(LATENTS, WIDTH).t(), meta(LATENTS), meta(WIDTH)
    threshold = meta(LATENTS) if activation == "jumprelu" else None
    with tuning.assume(part), record() as launches:
        encode.encode_bounded(
            BoundedEncodeCall(x, W, b, b_dec, [], threshold, activation, k, precision, 2**28, TOKENS * 512)
        )
    assert_bounded(launches, kinds)


def test_no_program_of_a_decode_waits_long_for_one_token():
    csr = meta(TOKENS * 149), meta(TOKENS * 149, dtype=torch.int32), meta(TOKENS + 1, dtype=torch.int64)
    for dtype in (torch.float32, torch.bfloat16):
        with tuning.assume("sm_90"), record() as launches:
            decode.decode_with_losses(
                DecodeCall(*csr, meta(LATENTS, WIDTH, dtype=dtype), meta(WIDTH)), meta(TOKENS, WIDTH)
            )
        assert_bounded(launches, ["decode"])


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_no_program_of_reconstruct_waits_long_for_one_token(precision, monkeypatch):
    monkeypatch.setattr(reconstruct.encoding, "read_status", lambda status, x: (0, 0))
    x, W, b, b_dec = meta(TOKENS, WIDTH), meta(LATENTS, WIDTH).t(), meta(LATENTS), meta(WIDTH)
    with tuning.assume("sm_90"), record() as launches:
        reconstruct.reconstruct(
            ReconstructCall(x, W, b, b_dec, [], None, "relu", 0, precision, 2**28, meta(LATENTS, WIDTH))
        )
    assert_bounded(launches, ["exact" if precision == "exact" else "encode", "decode"])


def assert_bounded(launches: list[Launch], kinds: list[str]) -> None:
    names = {launch.kernel.fn.__name__ for launch in launches}
    for kind in kinds:
        assert BOUNDED[kind] <= names, "the kernels that look at entries are those that are counted here"
    for launch in launches:
        taken = steps(launch, HEAVY)
        assert taken is None or taken <= 12, f"{launch.kernel.fn.__name__} takes {taken} steps"


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 3])
def test_tokens_that_their_neighbours_left_no_room_keep_their_bits(places, monkeypatch):
    """Candidates of a chunk share its places; what finds none is encoded again by itself, the same way."""
    case = make_case(21, 9, 24, 100, bias=0.2)
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    whole = pk.encode(case.x, w)
    assert whole.counts().max() > 12
    monkeypatch.setattr(fast, "SLOTS", 96)
    monkeypatch.setattr(fast, "PLACES", places)
    call = EncodeCall(case.x, case.W_enc, case.b_enc, case.b_dec, [], None, "relu", 0, "exact", 2**20)
    flags = encode.encode_into(case.x, encode.request(call), 1)
    assert int(flags[4][1]) > 0, "some found no room"
    assert_same(whole, pk.encode(case.x, w))


@pytest.mark.slow
def test_tokens_without_room_and_tokens_with_too_many_are_told_apart(monkeypatch):
    case = make_case(21, 9, 24, 100, bias=0.2)
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    whole = pk.encode(case.x, w)
    needed = fast.screening_report(case.x, case.W_enc, case.b_enc, case.b_dec)
    most = int(whole.counts().float().quantile(0.8))  # a few tokens have more, and two times as many places run out
    monkeypatch.setattr(fast, "SLOTS", most)
    monkeypatch.setattr(fast, "PLACES", 1)
    candidates = fast.screening_report(case.x, case.W_enc, case.b_enc, case.b_dec)
    few = (candidates == most + 1) & (needed <= most)
    assert (needed > most).any(), "too many for any place"
    assert few.any(), "marked: none left"
    after = pk.encode(case.x, w)
    assert torch.equal(after.indices, whole.indices)
    for row in few.nonzero().flatten().tolist():
        assert torch.equal(after.row(row)[1], whole.row(row)[1]), "scored the same way again"
    torch.testing.assert_close(after.values, whole.values)


@pytest.mark.slow
def test_rows_padded_to_less_than_a_block_leave_their_neighbours_alone():
    case = make_case(22, 5, 130, 40)
    w = pk.prepare(case.W_enc, case.b_enc, case.b_dec)
    assert_same(pk.encode(case.x, w), pk.SparseLatents.cat([pk.encode(x[None], w) for x in case.x]))

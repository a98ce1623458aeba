"""Packed rows of every depth: what was rounded, and norms that cover the truth."""

from __future__ import annotations

import pytest
import torch

from patchsae_kernels.triton import pack
from patchsae_kernels.triton.launch import record

DEPTHS = [20, 100, 2100, 4096, 5000]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("latents", [5, 33])
def test_rows_are_rounded_and_norms_are_upper_bounds(depth: int, latents: int) -> None:
    rows = torch.randn(latents, depth, generator=torch.Generator().manual_seed(0))
    packed = pack.pack(rows.t(), torch.zeros(latents), "exact")
    scaled = rows * packed.tau
    low = torch.where(scaled.half().abs() >= 2.0**-14, scaled.half(), 0.0)
    assert torch.equal(packed.low[:latents, :depth], low)
    assert not packed.low[latents:].any()
    assert not packed.low[:, depth:].any()
    norms, lost = scaled.double().norm(dim=1), (scaled - low.float()).double().norm(dim=1)
    u, v = packed.terms[:, :latents].double()
    slack = 1 + 8 * (depth + 64) * 2.0**-23
    assert ((u >= norms) & (u <= norms * slack)).all()
    assert ((v >= lost) & (v <= lost * slack + norms * (slack - 1))).all()


@pytest.mark.parametrize("depth", [*DEPTHS, 16_384])
def test_a_program_holds_as_many_rows_as_its_registers(depth: int) -> None:
    W, b = torch.empty(depth, 4096, device="meta"), torch.empty(4096, device="meta")
    with record() as launches:
        pack.pack(W, b, "exact")
    (launch,) = launches
    rows, elements = launch.options["ROWS"], launch.options["ROWS"] * launch.options["BLOCK"]
    assert elements <= pack.PACKED_ELEMENTS or rows == 1
    assert launch.grid[0] * rows == 4096

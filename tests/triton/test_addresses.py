"""A program that leaves its tensors is seen, whatever it does there."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from patchsae_kernels.triton.launch import launch


@triton.jit
def copy_kernel(x, y, n, LOADED: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n + LOADED, other=0.0), mask=i < n + STORED)


@triton.jit
def count_kernel(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(x + i, 1, mask=i < n + 1)


@pytest.mark.parametrize(("loaded", "stored", "does"), [(1, 0, "loads 1 of 6"), (0, 1, "stores 1 of 6")])
def test_one_element_past_the_end_is_seen(loaded, stored, does):
    x, y = torch.arange(13.0), torch.zeros(13)
    launch(copy_kernel, (2,), x, y, 13, LOADED=0, STORED=0, BLOCK=8)
    assert torch.equal(x, y)
    with pytest.raises(Exception, match=does):
        launch(copy_kernel, (2,), x, y, 13, LOADED=loaded, STORED=stored, BLOCK=8)


def test_so_is_a_neighbour_in_the_same_storage():
    whole = torch.arange(26.0)
    with pytest.raises(Exception, match="stores 1 of 6"):
        launch(copy_kernel, (2,), whole[13:].clone(), whole[:13], 13, LOADED=0, STORED=1, BLOCK=8)


def test_and_an_atomic_operation():
    with pytest.raises(Exception, match="changes 1 of 6"):
        launch(count_kernel, (1,), torch.zeros(5, dtype=torch.int32), 5, BLOCK=8)

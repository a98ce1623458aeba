"""Shuffled programs: each runs once, in an order that follows from grid and seed; a kernel that minds is found out."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import launch
from tests.triton.program_order import VARIABLE, seed_of_run, shuffled

GRIDS = ((12,), (3, 4), (2, 3, 2))


@triton.jit
def running_sum_kernel(x_ptr, total_ptr):
    """Wrong on a GPU: each program goes on from what the one before it has stored."""
    i = tl.program_id(0)
    before = tl.load(total_ptr + i - 1, i > 0, other=0.0)
    tl.store(total_ptr + i, before + tl.load(x_ptr + i))


@triton.jit
def take_a_number_kernel(counter_ptr, numbers_ptr):
    """Each program notes how many were before it."""
    across, down, deep = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    program = (across * tl.num_programs(1) + down) * tl.num_programs(2) + deep
    tl.store(numbers_ptr + program, tl.atomic_add(counter_ptr, 1))


def running_sum(n: int) -> Tensor:
    x, total = torch.ones(n), torch.empty(n)
    launch(running_sum_kernel, (n,), x, total)
    return total


def order(seed: int, grid: tuple[int, ...]) -> list[int]:
    counter, numbers = torch.zeros(1, dtype=torch.int32), torch.full((12,), -1, dtype=torch.int32)
    with shuffled(seed):
        launch(take_a_number_kernel, grid, counter, numbers)
    return numbers.tolist()


def test_without_a_seed_in_the_environment_the_interpreter_misses_a_kernel_that_needs_an_order() -> None:
    assert torch.equal(running_sum(20), torch.arange(1.0, 21.0)) == (seed_of_run() is None)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_kernel_that_needs_an_order_is_found_out(seed: int) -> None:
    with shuffled(seed):
        assert not torch.equal(running_sum(20), torch.arange(1.0, 21.0))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_program_runs_once(grid: tuple[int, ...]) -> None:
    assert sorted(order(1, grid)) == list(range(12))


def test_seeds_and_grids_have_orders_of_their_own() -> None:
    orders = {tuple(order(seed, grid)) for seed in (1, 2, 3) for grid in GRIDS}
    assert len(orders) == 9
    assert tuple(range(12)) not in orders


def test_a_seed_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "first")
    with pytest.raises(ValueError, match="PROGRAM_ORDER is 'first'; expected a number"):
        seed_of_run()

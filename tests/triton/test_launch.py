"""Starting kernels, recording them, and the memory that tests run in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from patchsae_kernels.triton.launch import FP_FUSION, Launch, descriptor, launch, record

ROOT = Path(__file__).parents[2]


@triton.jit
def scale_kernel(x_ptr, y_ptr, factor, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    shift = 0.0
    if y_ptr is not None:
        shift = tl.load(y_ptr + at, inside)
    tl.store(x_ptr + at, tl.load(x_ptr + at, inside) * factor + shift, inside)


@triton.jit
def copy_kernel(source, target, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    target.store([tl.program_id(0) * ROWS, 0], source.load([tl.program_id(0) * ROWS, 0]))


def scale(x: Tensor, shift: Tensor | None, factor: float) -> None:
    n = x.shape[0]
    launch(scale_kernel, (triton.cdiv(n, 16),), x, shift, factor, n, BLOCK=16, num_warps=1, num_stages=1)


@pytest.mark.parametrize("n", [1, 16, 37])
def test_a_launch_runs_the_whole_grid(n: int) -> None:
    x, shift = torch.arange(n, dtype=torch.float32), torch.ones(n)
    scale(x, shift, 3.0)
    assert torch.equal(x, torch.arange(n) * 3.0 + 1)


def test_an_absent_pointer_is_none() -> None:
    x = torch.ones(5)
    scale(x, None, 2.0)
    assert torch.equal(x, torch.full((5,), 2.0))


def test_an_empty_grid_starts_nothing() -> None:
    scale(torch.empty(0), None, 2.0)
    x = torch.ones(16)
    launch(scale_kernel, (1, 0), x, None, 2.0, 16, BLOCK=16)
    assert torch.equal(x, torch.ones(16))


def test_recording_lists_launches_in_order_and_starts_none() -> None:
    x = torch.ones(20)
    with record() as launches:
        scale(x, None, 2.0)
        scale(x, x, 4.0)
        scale(x[:0], None, 5.0)
    assert torch.equal(x, torch.ones(20))
    options = {"enable_fp_fusion": FP_FUSION, "BLOCK": 16, "num_warps": 1, "num_stages": 1}
    assert launches == [
        Launch(scale_kernel, (2,), (x, None, 2.0, 20), options),
        Launch(scale_kernel, (2,), (x, x, 4.0, 20), options),
    ]


def test_recording_ends_with_its_block() -> None:
    x = torch.ones(16)
    with record() as outer:
        with pytest.raises(ZeroDivisionError), record() as inner:
            scale(x, None, 1 / 0)
        scale(x, None, 2.0)
    scale(x, None, 3.0)
    assert (len(outer), len(inner)) == (1, 0)
    assert torch.equal(x, torch.full((16,), 3.0))


def test_meta_tensors_can_be_recorded() -> None:
    x = torch.empty(25_216, 768, device="meta", dtype=torch.bfloat16)
    with record() as launches:
        scale(x[:, 0], None, 2.0)
        launch(copy_kernel, (788,), descriptor(x, [32, 64]), descriptor(x, [32, 64]), ROWS=32, COLUMNS=64)
    assert [item.grid for item in launches] == [(1576,), (788,)]


def test_a_descriptor_reads_and_writes_its_tensor() -> None:
    x, y = torch.rand(8, 16), torch.empty(8, 16)
    launch(copy_kernel, (2,), descriptor(x, [4, 16]), descriptor(y, [4, 16]), ROWS=4, COLUMNS=16)
    assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_nobody_wrote_is_nan(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, dtype=dtype)
    for fresh in (torch.empty(2, 3, dtype=dtype), torch.empty_like(x), x.new_empty(2, 3)):
        assert fresh.isnan().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_integers_nobody_wrote_are_absurd(dtype: torch.dtype) -> None:
    assert (torch.zeros(1).new_empty(4, dtype=dtype) > torch.iinfo(dtype).max // 2).all()


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "interpret"), [("tests/triton", "0"), ("tests/gate", "1")])
def test_each_folder_is_collected_only_in_its_own_kind_of_process(folder: str, interpret: str) -> None:
    command = [sys.executable, "-m", "pytest", folder, "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, ended.stdout + ended.stderr

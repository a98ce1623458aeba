"""Products of bfloat16 matrices with float32 results: what the library offers a GPU, and what others get."""

from __future__ import annotations

import pytest
import torch

from patchsae_kernels.triton import widening


@pytest.mark.skipif(torch.version.cuda is None, reason="a build of PyTorch without CUDA")
@pytest.mark.parametrize("op", ["aten::mm.dtype_out", "aten::addmm.dtype_out"])
def test_the_library_widens_on_a_gpu_where_we_say_so(op: str) -> None:
    assert not widening.WIDENS or torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_float32(dtype: torch.dtype) -> None:
    a, b = torch.randn(5, 7).to(dtype), torch.randn(7, 3).to(dtype)
    expected = a.float() @ b.float()
    total = widening.product(a, b, torch.empty(5, 3))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(widening.add_product(total, a, b), 2 * expected)


def test_products_can_be_followed_on_meta_tensors() -> None:
    a, total = torch.empty(5, 5, device="meta", dtype=torch.bfloat16), torch.empty(5, 5, device="meta")
    assert widening.product(a, a, total) is total
    assert widening.add_product(total, a, a) is total

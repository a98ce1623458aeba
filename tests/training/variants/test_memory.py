"""What a step holds: no dense latents, and within the budget when half of all latents are active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from patchsae.parallel.base import Alone
from patchsae.training.variants.chunks import estimated_share, row_chunks
from patchsae.training.variants.per_latent import per_latent

from .cases import VARIANTS, make_case, variant_of
from .dense import Recipe

IMAGES, TOKENS, WIDTH, LATENTS = 8, 32, 4, 4096
BUDGET = 2**20
"""Bytes: of the dense latents a quarter, of the values of the active ones at a dense start half."""


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that any op returned."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize(("name", "dead_term"), [*((name, "auxk") for name in VARIANTS), ("topk", "ghost")])
def test_no_tensor_is_larger_than_the_budget_at_a_dense_start(name: str, dead_term: str) -> None:
    """Half of the latents are active and all of them dead: as dense as it gets."""
    variant = replace(variant_of(Recipe(name, published=True, dead_term=dead_term, auxk=64)), budget=BUDGET)
    sizes = {"images": IMAGES, "tokens": TOKENS, "width": WIDTH, "latents": LATENTS, "dead_share": 1.0}
    case = make_case(variant, 0, dtype=torch.float32, **sizes)
    case.params["b_enc"].detach().zero_()
    if "log_threshold" in case.params:
        case.params["log_threshold"].fill_(-7.0)
    with Largest() as largest:
        terms, _ = variant.step(case.x, case.params, variant.buffers(case.params), case.dead, Alone())
    if name in ("relu", "gated", "jumprelu"):
        assert terms.l0 > LATENTS / 4
    assert largest.bytes <= BUDGET


@given(
    tokens=st.integers(0, 500),
    width=st.integers(1, 50),
    entries=st.floats(1, 1e4),
    budget=st.integers(1, 10**7),
)
def test_chunks_are_all_the_tokens_in_order_within_the_budget(
    tokens: int, width: int, entries: float, budget: int
) -> None:
    chunks = row_chunks(tokens, width, entries, budget)
    assert [n for chunk in chunks for n in range(chunk.start, chunk.stop)] == list(range(tokens))
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    assert not lengths or (min(lengths) >= 1 and max(lengths) - min(lengths) <= 1)
    per_token = int(4 * width * 10 + 96 * entries) + 1
    assert all(length == 1 or (length - 1) * per_token <= budget for length in lengths)
    assert len(chunks) <= 1 or tokens * per_token > budget


@pytest.mark.parametrize("bias", [0.0, -1.0, -3.0])
def test_the_estimate_is_the_share_of_what_is_active(bias: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(300, 32, generator=generator), torch.randn(32, 5000, generator=generator) / 32**0.5
    b_enc, b_dec = torch.full((5000,), bias), torch.zeros(32)
    active = (x @ W + b_enc > 0).double().mean().item()
    assert estimated_share(x, W, b_enc, b_dec, None, Alone()) == pytest.approx(active, rel=0.2, abs=1e-4)
    above = (x @ W + b_enc > 1).double().mean().item()
    assert estimated_share(x, W, b_enc, b_dec, torch.ones(5000), Alone()) == pytest.approx(above, rel=0.2, abs=1e-4)


@given(seed=st.integers(0, 10_000), entries=st.integers(0, 200), latents=st.integers(1, 20))
def test_per_latent_is_indexing_with_its_gradient(seed: int, entries: int, latents: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(latents, generator=generator, dtype=torch.float64).requires_grad_()
    indices = torch.randint(0, latents, (entries,), generator=generator).int()
    weights = torch.randn(entries, generator=generator, dtype=torch.float64)
    found = per_latent(table, indices)
    assert torch.equal(found, table[indices])
    (gradient,) = torch.autograd.grad((found * weights).sum(), table)
    (expected,) = torch.autograd.grad((table[indices] * weights).sum(), table)
    torch.testing.assert_close(gradient, expected)

"""Images and latents divided among processes: the step is that of one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import patchsae_kernels as pk
from patchsae.parallel.base import Alone, Parallel
from patchsae.training.variants import Variant, resample
from patchsae.training.variants.select import batchtopk, topk

from .cases import SPARSE, VARIANTS, Case, make_case, variant_of
from .dense import Recipe
from .threads import together

GRIDS = [(1, 2), (2, 1), (2, 2), (1, 4)]


def part(name: str, tensor: Tensor, latents: slice) -> Tensor:
    """The shard of a parameter or gradient."""
    if name == "W_enc":
        return tensor[:, latents]
    return tensor if name == "b_dec" else tensor[latents]


def shard(case: Case, parallel: Parallel) -> Case:
    images = len(case.x) // parallel.data_size
    mine = parallel.latents(len(case.dead))
    params = {name: part(name, p, mine) for name, p in case.params.items()}
    return Case(case.x[images * parallel.data_rank :][:images], params, case.dead[mine])


@pytest.mark.parametrize(
    ("dead_term", "data", "latents", "bias"),
    [("auxk", 2, 2, SPARSE), ("auxk", 1, 2, 0.0), ("ghost", 1, 4, SPARSE), ("ghost", 2, 1, 0.0)],
)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_step_is_that_of_one_process(name: str, dead_term: str, data: int, latents: int, bias: float) -> None:
    variant = replace(variant_of(Recipe(name, dead_term=dead_term, cls_weight=2.0, k=2)), budget=20_000)
    case = make_case(variant, 3, images=4, bias=bias)
    case.dead[8:] = False  # some shards have no dead latents
    buffers = variant.buffers(case.params)
    terms, grads = variant.step(case.x, case.params, buffers, case.dead, Alone())

    def work(parallel: Parallel) -> tuple[slice, pk.StepTerms, dict[str, Tensor], dict[str, Tensor]]:
        mine, kept = shard(case, parallel), variant.buffers(case.params)
        found, gradients = variant.step(mine.x, mine.params, kept, mine.dead, parallel)
        parallel.sum_latents_([gradients["b_dec"]])
        averaged = [g / data for g in gradients.values()]
        parallel.sum_data_(averaged)
        return parallel.latents(16), found, dict(zip(gradients, averaged, strict=True)), kept

    results = together(data, latents, work)
    for mine, _, gradients, kept in results:
        for name_, gradient in gradients.items():
            torch.testing.assert_close(gradient, part(name_, grads[name_], mine), rtol=1e-9, atol=1e-12, msg=name_)
        torch.testing.assert_close(kept, buffers, rtol=1e-12, atol=0)
    for key in ("total", "mse", "l1", "ghost", "l0"):
        mean = torch.stack([getattr(found, key) for _, found, _, _ in results]).mean()
        torch.testing.assert_close(mean, getattr(terms, key), rtol=1e-9, atol=1e-12, msg=key)
    for start in {mine.start for mine, *_ in results}:
        fired = torch.stack([found.fired for mine, found, *_ in results if mine.start == start]).any(0)
        assert torch.equal(fired, terms.fired[start : start + 16 // latents])


@pytest.mark.slow
@given(
    seed=st.integers(0, 10_000),
    grid=st.sampled_from(GRIDS),
    k=st.sampled_from([1, 1, 2, 3, 5, 40]),
    levels=st.sampled_from([1, 2, 8, 1000]),
    skew=st.booleans(),
)
def test_selections_are_those_of_one_process_ties_included(
    seed: int, grid: tuple[int, int], k: int, levels: int, skew: bool
) -> None:
    """Few levels of values make ties; with skew, one process holds most of the large ones."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.eye(8, dtype=torch.float64)
    W = torch.randint(-levels, levels + 1, (8, 32), generator=generator).double() / levels
    if skew:
        W[:2, :8] += 5
    b_enc, b_dec = torch.zeros(32, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    whole = pk.prepare(W, b_enc, b_dec)
    by_token = pk.encode(x, whole, activation="topk", k=min(k, 32)).to_dense()
    by_batch = pk.encode(x, whole, activation="batchtopk", k=min(k, 32)).to_dense()

    def work(parallel: Parallel) -> tuple[slice, slice, Tensor, Tensor]:
        mine, rows = parallel.latents(32), slice(*(8 * (parallel.data_rank + i) // parallel.data_size for i in (0, 1)))
        weights = pk.prepare(W[:, mine], b_enc[mine], b_dec)
        token = topk(x[rows], weights, k, parallel).to_dense()
        return rows, mine, token, batchtopk(x[rows], weights, k, parallel).to_dense()

    for rows, mine, token, batch in together(*grid, work):
        assert torch.equal(token, by_token[rows, mine])
        assert torch.equal(batch, by_batch[rows, mine])


@pytest.mark.parametrize(("data", "latents"), [(2, 2), (1, 4)])
def test_resampling_is_that_of_one_process(data: int, latents: int) -> None:
    variant = variant_of(Recipe("jumprelu", published=True))
    case = make_case(variant, 5, images=4)

    def run(variant: Variant, case: Case, parallel: Parallel) -> tuple[Tensor, dict[str, Tensor]]:
        params = {name: p.clone(memory_format=torch.preserve_format) for name, p in case.params.items()}
        buffers, adam, generator = variant.buffers(params), pk.adam_init(params), torch.Generator().manual_seed(1)
        return resample(variant, case.x, params, buffers, adam, case.dead, generator, parallel), params

    restarted, params = run(variant, case, Alone())
    assert restarted.any()

    def work(parallel: Parallel) -> tuple[slice, Tensor, dict[str, Tensor]]:
        return parallel.latents(16), *run(variant, shard(case, parallel), parallel)

    for mine, some, theirs in together(data, latents, work):
        assert torch.equal(some, restarted[mine])
        for name, parameter in theirs.items():
            torch.testing.assert_close(parameter, part(name, params[name], mine), rtol=1e-9, atol=0, msg=name)

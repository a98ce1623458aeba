"""The mean and scale of tokens go where their tokens go: any chain of edits, decoded, against dense float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import patchsae_kernels as pk
from tests.examples import examples

S, D = 7, 3


@dataclass(frozen=True)
class Dense:
    """The same in float64, without a kernel: latents [N, S], mean and scale [N]."""

    latents: Tensor
    mean: Tensor | None
    scale: Tensor

    def rows(self, index: Tensor) -> Dense:
        return Dense(self.latents[index], None if self.mean is None else self.mean[index], self.scale[index])

    def decoded(self, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        y = (self.latents @ W_dec.double() + b_dec.double()) * self.scale[:, None]
        return y if self.mean is None else y + self.mean[:, None]


Edit = Callable[[pk.SparseLatents, Dense], tuple[pk.SparseLatents, Dense]]


def _columns(draw: st.DrawFn) -> list[int]:
    return draw(st.lists(st.integers(0, S - 1), unique=True, max_size=4))


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    kind = draw(st.sampled_from(["scale", "set", "add", "permute", "rows", "cut", "negative"]))
    columns, value = _columns(draw), float(draw(st.integers(-2, 2)))
    order = draw(st.permutations(range(S)))
    places = draw(st.lists(st.floats(0, 0.999), min_size=1, max_size=6))

    def edit(z: pk.SparseLatents, dense: Dense) -> tuple[pk.SparseLatents, Dense]:
        changed = dense.latents.clone()
        n = z.shape[0]
        if kind == "scale":
            changed[:, columns] *= value
            return z.scale(columns, value), replace(dense, latents=changed)
        if kind == "set":
            changed[:, columns] = value
            return z.set(columns, value), replace(dense, latents=changed)
        if kind == "add":
            changed[:, columns] += value
            return z.add(columns, value), replace(dense, latents=changed)
        if kind == "permute":
            return z.permute(order), replace(dense, latents=changed[:, list(order)])
        if kind == "rows":
            index = torch.tensor([int(place * n) for place in places])
            return z.select_rows(index), dense.rows(index)
        if kind == "cut":
            parts = z.reshape_tokens(n, 1)[::-1]
            return pk.SparseLatents.cat(parts), dense.rows(torch.arange(n - 1, -1, -1))
        return z.where(z.values > 0), replace(dense, latents=changed.clamp(min=0))

    return edit


@st.composite
def problems(draw: st.DrawFn) -> tuple[pk.SparseLatents, Dense, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    n = draw(st.integers(1, 6))
    latents = torch.randint(-1, 3, (n, S), generator=generator).float()
    scale = torch.rand(n, generator=generator) * 3
    mean = torch.randn(n, generator=generator) if draw(st.booleans()) else None
    W_dec, b_dec = torch.randn(S, D, generator=generator), torch.randn(D, generator=generator)
    z = replace(pk.SparseLatents.from_dense(latents), token_mean=mean, token_scale=scale)
    dense = Dense(latents.double(), None if mean is None else mean.double(), scale.double())
    return z, dense, W_dec, b_dec


@examples(60)
@given(problem=problems(), chain=st.lists(edits(), max_size=5))
def test_any_chain_of_edits_decodes_as_dense_latents_do(
    problem: tuple[pk.SparseLatents, Dense, Tensor, Tensor], chain: list[Edit]
) -> None:
    z, dense, W_dec, b_dec = problem
    for edit in chain:
        z, dense = edit(z, dense)
    z.validate()
    expected = dense.decoded(W_dec, b_dec)
    torch.testing.assert_close(pk.decode(z, W_dec, b_dec).double(), expected, atol=1e-4, rtol=1e-5)
    keep = torch.arange(S) % 2 == 0
    kept = replace(dense, latents=dense.latents * keep).decoded(W_dec, b_dec)
    torch.testing.assert_close(pk.decode_masked(z, keep, W_dec, b_dec).double(), kept, atol=1e-4, rtol=1e-5)
    rank = torch.arange(S, dtype=torch.int32)
    on, off = pk.decode_sweep(z, rank, [0, 3, S], W_dec, b_dec)
    for i, k in enumerate((0, 3, S)):
        first = torch.arange(S) < k
        for found, chosen in ((on[i], first), (off[i], ~first)):
            masked = replace(dense, latents=dense.latents * chosen).decoded(W_dec, b_dec)
            torch.testing.assert_close(found.double(), masked, atol=1e-4, rtol=1e-5)

"""Random cases and the float64 oracle for the kernel tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

import patchsae_kernels as pk


class Case(NamedTuple):
    """A small SAE and its input; float32."""

    x: Tensor  # [N, D]
    W_enc: Tensor  # [D, S]
    b_enc: Tensor  # [S]
    W_dec: Tensor  # [S, D]
    b_dec: Tensor  # [D]

    def double(self) -> Case:
        return Case(*(t.double() for t in self))

    def pre(self) -> Tensor:
        """Pre-activations [N, S], dense."""
        return (self.x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, **options: object) -> pk.SparseLatents:
        return pk.encode(self.x, self.W_enc, self.b_enc, self.b_dec, **options)


def make_case(seed: int, n: int, d: int, s: int, bias: float = -0.5, latent_major: bool = True) -> Case:
    g = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(s, d, generator=g).t() if latent_major else torch.randn(d, s, generator=g)
    return Case(
        torch.randn(n, d, generator=g),
        W_enc / d**0.5,
        bias + 0.3 * torch.randn(s, generator=g),
        torch.nn.functional.normalize(torch.randn(s, d, generator=g), dim=1),
        0.2 * torch.randn(d, generator=g),
    )


@st.composite
def cases(draw: st.DrawFn, min_n: int = 0) -> Case:
    """Tails, single columns, empty inputs, dense and nearly empty activity, both layouts of W_enc."""
    return make_case(
        draw(st.integers(0, 2**31)),
        draw(st.integers(min_n, 9)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 70)),
        draw(st.sampled_from([-3.0, -0.5, 0.0, 2.0])),
        draw(st.booleans()),
    )


def random_latents(seed: int, n: int, s: int, density: float = 0.2) -> pk.SparseLatents:
    g = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, s, generator=g) * (torch.rand(n, s, generator=g) < density)
    return pk.SparseLatents.from_dense(dense)


latents = st.builds(
    random_latents,
    st.integers(0, 2**31),
    st.integers(0, 12),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


def assert_same(a: pk.SparseLatents, b: pk.SparseLatents) -> None:
    """Equal bits, pattern and values."""
    assert a.shape == b.shape
    assert torch.equal(a.indptr, b.indptr)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.values, b.values)

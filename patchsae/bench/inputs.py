"""Everything an op takes; seeded: standard normal tokens, an encoder whose bias gives the wanted L0, its latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

import patchsae_kernels as pk
from patchsae.bench.sizes import Size

Held = TypeVar("Held")
DENSE_BUDGET = 1 << 30
"""Bytes of dense latents at a time while the reference makes the inputs of decode."""
THRESHOLD = 0.3
"""Of JumpReLU."""
TAU = 0.2
"""What a latent must be above to count in the statistics."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything an op takes, on one device.

    Attributes:
        xs: input sets [N, D] float32, which take turns while timing.
        W_enc: [D, S], latent-major, unit columns.
        W_dec: [S, D], unit rows.
        threshold: [S], of JumpReLU.
        rank: [C, S] int32.
    """

    size: Size
    xs: tuple[Tensor, ...]
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    rank: Tensor

    @property
    def x(self) -> Tensor:
        return self.xs[0]

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def description(self) -> str:
        return f"N = {len(self.x)}, D = {self.size.d_in}, S = {self.size.d_sae}, L0 = {self.z.l0:.0f}"

    @cached_property
    def labels(self) -> Tensor:
        """[B] int64."""
        return torch.arange(self.size.images, device=self.device) % self.size.classes

    @cached_property
    def class_ids(self) -> Tensor:
        """[N] int64: the labels of the tokens' images."""
        return self.labels.repeat_interleave(self.size.tokens)

    @cached_property
    def rows(self) -> Tensor:
        """[sample] int64: the tokens compared with float64, spread over all; the first and the last are among them."""
        spread = torch.linspace(0, self.size.n - 1, min(self.size.n, self.size.sample), device=self.device)
        rows: Tensor = torch.unique_consecutive(spread.round().long())
        return rows

    def keep(self, kept: int | None = None) -> Tensor:
        """bool [C, S]: the first latents of every class, so many or an eighth of all: for the masked decode."""
        return self.cached(f"keep {kept}", lambda: self.rank < (self.size.d_sae // 8 if kept is None else kept))

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}

    def copied_parameters(self) -> dict[str, Tensor]:
        """Parameters to step on, stored as these are."""
        return {name: p.clone(memory_format=torch.preserve_format) for name, p in self.parameters.items()}

    @cached_property
    def weights(self) -> pk.PreparedWeights:
        return pk.prepare(self.W_enc, self.b_enc, self.b_dec)

    @cached_property
    def zs(self) -> tuple[pk.SparseLatents, ...]:
        """ReLU latents of every input set, made by no kernel."""
        return tuple(self._latents(x, "relu", 0) for x in self.xs)

    @cached_property
    def top_zs(self) -> tuple[pk.SparseLatents, ...]:
        """The same with the middle k."""
        return tuple(self._latents(x, "topk", self.size.middle_k) for x in self.xs)

    @property
    def z(self) -> pk.SparseLatents:
        return self.zs[0]

    @cached_property
    def xs_bf16(self) -> tuple[Tensor, ...]:
        """What the products of the opponents multiply: (x - b_dec) in bfloat16, made outside of the timed region."""
        return tuple((x - self.b_dec).bfloat16() for x in self.xs)

    @cached_property
    def W_enc_bf16(self) -> Tensor:
        return self.W_enc.bfloat16()

    @cached_property
    def W_dec_bf16(self) -> Tensor:
        return self.W_dec.bfloat16()

    @cached_property
    def W_enc_rows(self) -> Tensor:
        """[D, S] contiguous, as the released code stores it."""
        return self.W_enc.contiguous()

    def images(self, turn: int = 0) -> Tensor:
        """The input set of a turn as [B, T, D]."""
        return self.xs[turn % len(self.xs)].view(self.size.images, self.size.tokens, -1)

    def dense(self, precision: str = "fp32") -> Tensor:
        """[N, S], the latents of the first set for the dense opponents; one set exceeds any cache."""
        dtype = self.dictionary(precision).dtype
        return self.cached(f"dense {precision}", lambda: self.z.to_dense().to(dtype))

    def dictionary(self, precision: str) -> Tensor:
        """W_dec in "fp32" or "bf16"."""
        return self.W_dec_bf16 if precision == "bf16" else self.W_dec

    def cached(self, name: str, make: Callable[[], Held]) -> Held:
        """Something large that stays until `release` (a dense opponent's input, its output buffer, its parameters)."""
        held: dict[str, Held] = self.__dict__.setdefault("_held", {})
        if name not in held:
            held[name] = make()
        return held[name]

    def release(self) -> None:
        """Drop what `cached` holds: dense tensors are freed, and training starts from the same weights again."""
        self.__dict__.pop("_held", None)

    def with_bias(self, b_enc: Tensor) -> Problem:
        """The same inputs under another encoder bias."""
        return replace(self, b_enc=b_enc)

    def first_images(self, images: int) -> Problem:
        """Only the first images of the first set."""
        return replace(self, size=replace(self.size, images=images, sets=1), xs=(self.x[: images * self.size.tokens],))

    def _latents(self, x: Tensor, activation: str, k: int) -> pk.SparseLatents:
        """By the op in float64, which the reference serves."""
        wide = (t.double() for t in (x, self.W_enc, self.b_enc, self.b_dec))
        values, indices, indptr = torch.ops.patchsae.encode(*wide, [], None, activation, k, "fp32", DENSE_BUDGET)
        return pk.SparseLatents(values.float(), indices, indptr, (x.shape[0], self.W_enc.shape[1]))


def make_problem(size: Size, device: str | torch.device = "cpu", seed: int = 0) -> Problem:
    """Standard normal tokens and one encoder bias, drawn on the CPU: the same on every device."""
    g = torch.Generator().manual_seed(seed)
    n, d, s = size.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    x, b_dec = normal(n, d), 0.1 * normal(d)
    W_enc = F.normalize(normal(s, d), dim=1).t()
    # x - b_dec is normal with variance 1.01, so a pre-activation is too: the quantile sets the share of active latents.
    level = 1.01**0.5 * NormalDist().inv_cdf(1 - size.l0 / s)
    rank = torch.stack([torch.randperm(s, generator=g) for _ in range(size.classes)]).to(device, torch.int32)
    return Problem(
        size=size,
        xs=(x,),
        W_enc=W_enc,
        b_enc=torch.full((s,), -level, device=device),
        W_dec=F.normalize(normal(s, d), dim=1),
        b_dec=b_dec,
        threshold=torch.full((s,), THRESHOLD, device=device),
        rank=rank,
    )

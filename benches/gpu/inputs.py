"""Seeded inputs: residual-like tokens, an encoder whose bias gives the wanted L0, and latents that no kernel made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

import patchsae_kernels as pk
from benches.gpu.sizes import Size
from patchsae_kernels import reference

Held = TypeVar("Held")
CALIBRATION_TOKENS = 1024
DENSE_BUDGET = 4 << 30  # bytes of dense latents at a time while the reference makes the inputs of decode


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything an op takes, on one device.

    Attributes:
        xs: input sets [N, D] float32, which take turns while timing.
        W_enc: [D, S], latent-major, unit columns.
        threshold: [S], of JumpReLU.
        rank: [C, S] int32.
        rows: [sample] int64, the tokens compared with float64; the first and the last are among them.
    """

    size: Size
    xs: tuple[Tensor, ...]
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    labels: Tensor
    class_ids: Tensor
    rank: Tensor
    rows: Tensor

    @property
    def x(self) -> Tensor:
        return self.xs[0]

    @property
    def device(self) -> torch.device:
        return self.xs[0].device

    @property
    def keep(self) -> Tensor:
        """bool [C, S]: the keep sets of the masked decode."""
        return self.rank < self.size.d_sae // 8

    @cached_property
    def weights(self) -> pk.PreparedWeights:
        return pk.prepare(self.W_enc, self.b_enc, self.b_dec)

    @cached_property
    def zs(self) -> tuple[pk.SparseLatents, ...]:
        """ReLU latents of every input set, made by the reference."""
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

    def dictionary(self, precision: str) -> Tensor:
        """W_dec in "fp32" or "bf16"."""
        return self.W_dec_bf16 if precision == "bf16" else self.W_dec

    def cached(self, name: str, make: Callable[[], Held]) -> Held:
        """Something large that stays until `release` (a dense opponent's input, its output buffer, its parameters)."""
        held = self.__dict__.setdefault("_held", {})
        if name not in held:
            held[name] = make()
        return held[name]

    def release(self) -> None:
        """Drop what `cached` holds."""
        self.__dict__.pop("_held", None)

    def with_bias(self, b_enc: Tensor) -> Problem:
        """The same inputs under another encoder bias."""
        return Problem(**{**self._fields(), "b_enc": b_enc})

    def first_images(self, images: int) -> Problem:
        """Only the first images of the first set."""
        n = images * self.size.tokens
        changed = {
            "size": replace(self.size, images=images, sets=1),
            "xs": (self.x[:n],),
            "labels": self.labels[:images],
            "class_ids": self.class_ids[:n],
            "rows": sample_rows(n, self.size.sample, self.device),
        }
        return Problem(**{**self._fields(), **changed})

    def _fields(self) -> dict:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _latents(self, x: Tensor, activation: str, k: int) -> pk.SparseLatents:
        csr = reference.encode(x, self.W_enc, self.b_enc, self.b_dec, None, activation, k, "fp32", DENSE_BUDGET)
        return pk.SparseLatents(*csr, (x.shape[0], self.W_enc.shape[1]))


def make_problem(size: Size, device: torch.device, seed: int = 0, outliers: bool = False) -> Problem:
    """Inputs of a size.

    Tokens have a decaying spectrum and lengths that vary; encoder biases vary between latents, so that activity is
    skewed over tokens and latents. ``outliers`` adds four channels and one token in a hundred that are far larger.
    """
    g = torch.Generator(device).manual_seed(seed)
    n, d, s = size.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    spectrum = (1 + torch.arange(d, device=device)).float() ** -0.25
    spectrum /= spectrum.square().mean().sqrt()
    b_dec = 0.5 * normal(d)

    def tokens() -> Tensor:
        x = normal(n, d) * spectrum * (0.15 * normal(n, 1)).exp()
        if outliers:
            x[:, :: max(1, d // 4)] *= 20
            x[:: min(100, n)] *= 10
        return x + b_dec

    xs = tuple(tokens() for _ in range(size.sets))
    W_enc = F.normalize(normal(s, d), dim=1).t()
    b_enc = calibrated_bias(xs[0], W_enc, 0.3 * normal(s), b_dec, size.l0)
    labels = torch.arange(size.images, device=device) % size.classes
    return Problem(
        size=size,
        xs=xs,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=F.normalize(normal(s, d), dim=1),
        b_dec=b_dec,
        threshold=torch.rand(s, generator=g, device=device),
        labels=labels,
        class_ids=labels.repeat_interleave(size.tokens),
        rank=torch.stack([torch.randperm(s, generator=g, device=device) for _ in range(size.classes)]).int(),
        rows=sample_rows(n, size.sample, device),
    )


def calibrated_bias(x: Tensor, W_enc: Tensor, spread: Tensor, b_dec: Tensor, l0: float) -> Tensor:
    """``spread - level`` [S]; the level is found by bisection: a sample of tokens has ``l0`` active latents."""
    sample = x[:: max(1, x.shape[0] // CALIBRATION_TOKENS)]
    pre = torch.addmm(spread, sample - b_dec, W_enc)
    low, high = float(pre.min()), float(pre.max())
    for _ in range(40):
        middle = (low + high) / 2
        if float((pre > middle).sum()) / len(sample) > l0:
            low = middle
        else:
            high = middle
    return spread - (low + high) / 2


def describe(z: pk.SparseLatents) -> dict[str, float]:
    """How the activity of latents is distributed: mean, 10th and 90th percentile and largest L0, share ever active."""
    counts = z.counts().float()
    p10, p90 = torch.quantile(counts, counts.new_tensor([0.1, 0.9])).tolist()
    used = torch.unique(z.indices).numel() / z.shape[1]
    return {"l0": z.l0, "l0_p10": p10, "l0_p90": p90, "l0_max": float(counts.max()), "latents_used": used}


def sample_rows(n: int, count: int, device: torch.device) -> Tensor:
    """int64: up to ``count`` tokens spread over all, the first and the last among them."""
    return torch.linspace(0, n - 1, min(n, count), device=device).round().long().unique()

"""How well an autoencoder reconstructs, and how sparsely: sums over tokens while images stream by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import patchsae_kernels as pk

_SUMS = ("squared_error", "squared_norm", "released", "cosine", "l1")


@dataclass(frozen=True)
class TokenQuality:
    """Quality of the reconstruction of some tokens x [D] by y. NaN where the tokens do not say (none, no variance)."""

    tokens: int
    """How many."""
    explained_variance: float
    """1 - sum |y - x|^2 / sum |x - mean|^2, about the mean token of all the images."""
    nmse: float
    """Normalised squared error: sum |y - x|^2 / sum |x|^2."""
    nmse_centred: float
    """The same about the mean: sum |y - x|^2 / sum |x - mean|^2, which is 1 - explained variance."""
    mse: float
    """The released loss: mean over tokens and D of (y - x)^2 / |x|, every token with weight 1."""
    squared_error: float
    """The published loss: mean over tokens of |y - x|^2, summed over D."""
    cosine: float
    """Mean over tokens of the cosine between x and y."""
    l1: float
    """Mean over tokens of the sum of the latents; the losses multiply it with their coefficient."""
    l0: float
    """Mean number of active latents."""


class TokenSums:
    """Sums of which :class:`TokenQuality` is made, float64, with the mean and the scatter of the tokens streamed.

    Merging is associative up to float64 rounding (Chan, Golub and LeVeque 1979 for the scatter).

    Args: ``width`` D, ``device`` of the tokens that will come.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self.active = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros((), dtype=torch.float64, device=device)
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)

    def update(self, x: Tensor, y: Tensor, l1: Tensor, l0: Tensor) -> None:
        """Take in tokens x and reconstructions y, float32 [n, D], with the sum of their latents float64 [n] and L0."""
        if len(x) == 0:
            return
        x, y = x.double(), y.double()
        error, norm = (y - x).square().sum(1), x.square().sum(1)
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=1)
        released = error / norm.sqrt() / x.shape[1]
        self.sums += torch.stack([term.sum() for term in (error, norm, released, cosine, l1)])
        self.active += int(l0.sum())
        mean = x.mean(0)
        self._combine(len(x), mean, (x - mean).square().sum())

    def merge(self, other: TokenSums) -> None:
        self.sums = self.sums + other.sums
        self.active += other.active
        self._combine(other.tokens, other.mean, other.scatter)

    def state_dict(self) -> dict[str, Tensor]:
        counts = torch.tensor([self.tokens, self.active])
        return {"counts": counts, "mean": self.mean, "scatter": self.scatter, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.tokens, self.active = state["counts"].tolist()
        self.mean, self.scatter, self.sums = (state[name].to(self.sums.device) for name in ("mean", "scatter", "sums"))

    def finalize(self) -> TokenQuality:
        total = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        share = _ratio(total["squared_error"], self.scatter.item())
        return TokenQuality(
            tokens=self.tokens,
            explained_variance=1 - share,
            nmse=_ratio(total["squared_error"], total["squared_norm"]),
            nmse_centred=share,
            mse=_ratio(total["released"], self.tokens),
            squared_error=_ratio(total["squared_error"], self.tokens),
            cosine=_ratio(total["cosine"], self.tokens),
            l1=_ratio(total["l1"], self.tokens),
            l0=_ratio(self.active, self.tokens),
        )

    def _combine(self, tokens: int, mean: Tensor, scatter: Tensor) -> None:
        both = self.tokens + tokens
        if tokens == 0:
            return
        apart = mean - self.mean
        self.scatter = self.scatter + scatter + apart.square().sum() * (self.tokens * tokens / both)
        self.mean = self.mean + apart * (tokens / both)
        self.tokens = both


@dataclass(frozen=True, eq=False)
class Quality:
    """What :class:`QualityCounts` found."""

    all: TokenQuality
    cls: TokenQuality
    patches: TokenQuality
    l0: Tensor
    """int64 [2, S + 1]: CLS tokens (row 0) and patches (row 1) with so many active latents."""
    fired: Tensor
    """int64 [S]: tokens on which each latent is active."""

    @property
    def frequency(self) -> Tensor:
        """Share of the tokens on which each latent is active, float64 [S]."""
        return self.fired.double() / max(1, self.all.tokens)

    @property
    def dead(self) -> int:
        """Latents that never fired on these images."""
        return int((self.fired == 0).sum())

    def dense(self, above: float) -> int:
        """Latents that are active on more than this share of the tokens."""
        return int((self.frequency > above).sum())

    def l0_quantile(self, share: float) -> int:
        """The smallest L0 that at least this share of all tokens does not exceed."""
        reached = self.l0.sum(0).cumsum(0)
        return int(torch.searchsorted(reached, max(1, math.ceil(share * self.all.tokens))))


class QualityCounts:
    """Errors of CLS and of patches apart, the distribution of L0, and how often every latent fires.

    Args: ``latents`` S, ``tokens_per_image`` T, ``width`` D, ``device`` of what will come.
    """

    def __init__(self, latents: int, tokens_per_image: int, width: int, device: torch.device | str = "cpu") -> None:
        self.tokens_per_image = tokens_per_image
        self.groups = {"cls": TokenSums(width, device), "patches": TokenSums(width, device)}
        self.l0 = torch.zeros(2, latents + 1, dtype=torch.int64, device=device)
        self.fired = torch.zeros(latents, dtype=torch.int64, device=device)

    def update(self, residual: Tensor, latents: pk.SparseLatents, reconstruction: Tensor) -> None:
        """Take in whole images: residual stream and reconstruction [B, T, D], latents [B * T, S]; CLS comes first."""
        active = latents.counts()
        l1 = torch.segment_reduce(latents.values.double(), "sum", offsets=latents.indptr, initial=0)
        is_cls = torch.zeros(self.tokens_per_image, dtype=torch.bool, device=latents.device)
        is_cls[0] = True
        is_cls = is_cls.repeat(len(residual))
        x, y = residual.flatten(0, 1), reconstruction.flatten(0, 1)
        for row, (group, chosen) in enumerate(zip(self.groups.values(), (is_cls, ~is_cls), strict=True)):
            group.update(x[chosen], y[chosen], l1[chosen], active[chosen])
            self.l0[row] += torch.bincount(active[chosen], minlength=self.l0.shape[1])
        self.fired += torch.bincount(latents.indices, minlength=len(self.fired))

    def merge(self, other: QualityCounts) -> None:
        for name, group in self.groups.items():
            group.merge(other.groups[name])
        self.l0 = self.l0 + other.l0
        self.fired = self.fired + other.fired

    def state_dict(self) -> dict[str, Tensor]:
        sums = {f"{g}.{key}": value for g, group in self.groups.items() for key, value in group.state_dict().items()}
        return {"l0": self.l0, "fired": self.fired, **sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.l0, self.fired = state["l0"].to(self.l0.device), state["fired"].to(self.fired.device)
        for name, group in self.groups.items():
            own = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
            group.load_state_dict({key.removeprefix(f"{name}."): value for key, value in own.items()})

    def finalize(self) -> Quality:
        together = TokenSums(len(self.groups["cls"].mean), self.l0.device)
        for group in self.groups.values():
            together.merge(group)
        cls, patches = (group.finalize() for group in self.groups.values())
        return Quality(together.finalize(), cls, patches, self.l0.cpu(), self.fired.cpu())


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan

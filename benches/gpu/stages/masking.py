"""The masking sweep end to end against one full pass of the tower per mask with dense fp32 latents."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from benches.gpu.timing import Pace
from torch import Tensor

from benches.gpu.bench import Bench
from benches.gpu.lines import Bar, Opponent, Side
from benches.gpu.measure import AGAIN, OURS, compared, time_sides
from benches.gpu.records import Finding, Item, Result
from benches.naive_masking import forward
from patchsae.bench.measure import peak_mb

if TYPE_CHECKING:
    from patchsae.models.clip import SplitCLIP
    from patchsae.models.sae import SparseAutoencoder

NAME = "masking sweep end to end"
NEAR = {"fp32": 1e-5, "bf16": 2e-2}
"""Scores (cosines) closer than this are a tie: which of the two is first is decided by rounding."""
Embeddings = dict[tuple[str, int], Tensor]


@dataclass(eq=False)
class Sweep:
    """A CLIP with random weights, a SAE of its last-but-one block, images, one ranking per class, class directions."""

    bench: Bench
    clip: SplitCLIP
    sae: SparseAutoencoder
    pixels: Tensor
    labels: Tensor
    rank: Tensor
    directions: Tensor

    @property
    def ks(self) -> tuple[int, ...]:
        return self.bench.size.sweep

    @cached_property
    def halved(self) -> SplitCLIP:
        """The same tower in bfloat16."""
        return _load(self.bench, torch.bfloat16)

    def ours(self, clip: SplitCLIP) -> Embeddings:
        """(mode, k) -> [B, E]."""
        from patchsae.experiments.mask.embeddings import sweep_embeddings

        swept = sweep_embeddings(clip, self.sae, self.pixels, self.labels, {"class": self.rank}, self.ks)
        return {(variant.mode, variant.k): e for variant, e in swept.items() if variant.mode != "reconstruction"}

    @cached_property
    def expected(self) -> Embeddings:
        """What the opponent gives, for the comparison of predictions."""
        return self.naive()

    @torch.no_grad()
    def naive(self) -> Embeddings:
        """One pass as it is and one for every mask; keeping all S latents is the plain reconstruction."""
        model, block = self.clip.model, self.clip.layer
        result = {("unmodified", 0): forward(model, block, self.pixels, lambda residual: residual)}
        ranks = self.rank[self.labels]
        for k in self.ks:
            result["keep", k] = forward(model, block, self.pixels, self._masked(ranks < k))
            result["ablate", k] = forward(model, block, self.pixels, self._masked(ranks >= k))
        return result

    def _masked(self, keep: Tensor) -> Any:
        sae = self.sae

        def replace(residual: Tensor) -> Tensor:
            latents = torch.relu((residual - sae.b_dec) @ sae.W_enc + sae.b_enc) * keep[:, None, :]  # [B, T, S]
            return latents @ sae.W_dec + sae.b_dec

        return replace


def items(bench: Bench) -> Iterator[Item]:
    if importlib.util.find_spec("open_clip") is None:
        yield Item(NAME, lambda: Result(skipped="open_clip is not installed"))
        return
    sweep = functools.cache(functools.partial(_build, bench))
    yield Item(f"{NAME}, fp32 tower", lambda: _measure(bench, sweep(), "fp32"))
    yield Item(f"{NAME}, bf16 tower", lambda: _measure(bench, sweep(), "bf16"))


def _measure(bench: Bench, sweep: Sweep, precision: str) -> Result:
    """In fp32 other predictions are a failure; in bf16 they are counted, and the bar needs that there are none."""
    clip = sweep.clip if precision == "fp32" else sweep.halved
    agreement = _agreement(sweep, sweep.ours(clip), sweep.expected, NEAR[precision])
    findings = (Finding("predictions that differ", agreement["differ"], 0 if precision == "fp32" else float("inf")),)
    if not findings[0].ok:
        return Result(findings, agreement)
    side = Side("sweep_embeddings", f"tower {precision}, SAE exact", lambda _p, _turn: sweep.ours(clip))
    passes = f"{1 + 2 * len(sweep.ks)} full passes, dense SAE"
    naive = Opponent(Side(passes, "fp32", lambda _p, _turn: sweep.naive()), Bar(False, 100))
    pace = Pace(min(6.0, max(0.0, bench.left / 3)), 2, 7, 0) if bench.on_gpu else bench.pace
    data = time_sides({OURS: side, AGAIN: side, "against 0": naive.side}, None, bench, pace)
    against = compared(naive, "against 0", data)
    del data["samples"]
    data |= {"ours": {"name": side.name, "precision": side.precision}, "against": [against], **agreement}
    against["met"] = against["met"] and agreement["differ"] == 0
    data["peak_mb"] = peak_mb(lambda: sweep.ours(clip), bench.device)
    return Result(findings, data)


def _agreement(sweep: Sweep, found: Embeddings, expected: Embeddings, near: float) -> dict[str, Any]:
    """Predictions that differ, apart from those where the opponent's two best scores are a tie."""
    differ = ties = 0
    largest = 0.0
    for key, embedding in expected.items():
        scores, ours = embedding.float() @ sweep.directions.T, found[key].float() @ sweep.directions.T
        best = scores.topk(2, dim=1).values
        changed = scores.argmax(1) != ours.argmax(1)
        tied = best[:, 0] - best[:, 1] <= near
        differ += int((changed & ~tied).sum())
        ties += int((changed & tied).sum())
        largest = max(largest, float((scores - ours).abs().max()))
    predictions = len(expected) * len(sweep.labels)
    return {"predictions": predictions, "differ": differ, "differ at a tie": ties, "largest score difference": largest}


def _build(bench: Bench) -> Sweep:
    from patchsae.models.sae import SparseAutoencoder
    from patchsae.models.sae_config import SAEConfig

    size, device = bench.size, bench.device
    g = torch.Generator().manual_seed(0)
    clip = _load(bench, torch.float32)
    sae = SparseAutoencoder(SAEConfig(clip.width, size.d_sae), g).to(device).requires_grad_(False)
    pixels = torch.randn(size.masked_images, 3, *clip.image_size, generator=g).to(device)
    residual = clip.residual(pixels[:4]).reshape(-1, clip.width)
    _make_sparse(sae, residual, size.l0)
    labels = torch.randint(0, size.classes, (size.masked_images,), generator=g).to(device)
    rank = torch.stack([torch.randperm(size.d_sae, generator=g) for _ in range(size.classes)]).int().to(device)
    directions = F.normalize(torch.randn(size.prediction_classes, clip.embed_dim, generator=g), dim=1).to(device)
    return Sweep(bench, clip, sae, pixels, labels, rank, directions)


def _load(bench: Bench, dtype: torch.dtype) -> SplitCLIP:
    from patchsae.models.clip import load_clip

    return load_clip(bench.size.clip, None, device=bench.device, dtype=dtype)


@torch.no_grad()
def _make_sparse(sae: SparseAutoencoder, tokens: Tensor, active: int) -> None:
    """Centre the pre-activations of some tokens and set one bias that leaves ``active`` latents per token."""
    sae.b_dec.copy_(tokens.mean(0))
    pre = ((tokens - sae.b_dec) @ sae.W_enc).flatten()
    sae.b_enc.fill_(-float(pre.kthvalue(pre.numel() - active * len(tokens)).values))
    sae.refresh()

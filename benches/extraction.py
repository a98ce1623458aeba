"""Extraction (tower, encode, statistics) against the same with dense latents, written leanly in PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import patchsae_kernels as pk
from benches.vit import CLASSES, EndToEnd
from patchsae.bench.case import floor, side, unchecked
from patchsae.bench.checks import close
from patchsae.bench.findings import Finding, Findings
from patchsae.experiments.stream.accumulators import LatentStatistics, image_means
from patchsae.models.clip import SplitCLIP

THRESHOLD = 0.2


class Found(NamedTuple):
    """What is kept of a batch; all [S], but class_counts [C, S] and means [B, S] (sparse in ours)."""

    sums: Tensor
    counts: Tensor
    image_counts: Tensor
    maxima: Tensor
    class_counts: Tensor
    means: Tensor | pk.SparseLatents


@torch.no_grad()
def ours(case: EndToEnd) -> Found:
    return _ours(case, case.clip)


@torch.no_grad()
def _ours(case: EndToEnd, clip: SplitCLIP) -> Found:
    latents = case.sae.encode(clip.residual(case.pixels).float())
    statistics = LatentStatistics(case.sae.config.d_sae, clip.image_tokens, THRESHOLD, CLASSES)
    statistics.update(latents, case.labels)
    s = statistics.stats
    assert s.class_counts is not None
    means = image_means(latents, clip.image_tokens)
    return Found(s.sums, s.counts, s.image_counts, s.max_values, s.class_counts, means)


@torch.no_grad()
def dense(case: EndToEnd) -> Found:
    residual = case.clip.residual(case.pixels)
    images, tokens, _ = residual.shape
    h = torch.addmm(case.sae.b_enc, residual.flatten(0, 1) - case.sae.b_dec, case.sae.W_enc).relu_()
    h = h.view(images, tokens, -1)
    counts = (h > THRESHOLD).sum(1)  # [B, S]
    sums = h.sum(1)
    maxima = h.amax(1)
    classes = counts.new_zeros(CLASSES, h.shape[2]).index_add_(0, case.labels, counts)
    return Found(sums.sum(0), counts.sum(0), (maxima > 0).sum(0), maxima.amax(0), classes, sums / tokens)


def check(case: EndToEnd, found: Found, expected: Found) -> Findings:
    """Counts may differ by an activation that rounds to the other side of the threshold."""
    assert isinstance(found.means, pk.SparseLatents)
    pairs = {name: (getattr(found, name), getattr(expected, name)) for name in Found._fields}
    values = {name: pairs[name] for name in ("sums", "maxima")} | {"means": (found.means.to_dense(), expected.means)}
    counts = {name: pairs[name] for name in ("counts", "image_counts", "class_counts")}
    return (
        *(close(name, a.float(), b, atol=1e-4) for name, (a, b) in values.items()),
        *(Finding(f"{n} apart", float((a - b).abs().sum()), 1e-4 * int(b.sum()) + 1) for n, (a, b) in counts.items()),
    )


def _check_halved(case: EndToEnd, found: Found, expected: Found) -> Findings:
    """The tower rounds to bfloat16, so only the whole is compared: activity within a few per cent."""
    a, b = float(found.sums.sum()), float(expected.sums.sum())
    return (Finding("relative difference of the sum of activations", abs(a - b) / b, 0.05),)


EXTRACTION = unchecked(ours).beside(
    "extraction",
    side("tower + dense SAE", dense, "fp32"),
    floor("the tower alone", lambda case: case.clip.residual(case.pixels)),
    check,
)
EXTRACTION_BF16 = unchecked(lambda case: _ours(case, case.halved)).beside(
    "extraction, bf16 tower",
    side("fp32 tower + dense SAE", dense, "fp32"),
    floor("the tower alone, bf16", lambda case: case.halved.residual(case.pixels)),
    _check_halved,
)

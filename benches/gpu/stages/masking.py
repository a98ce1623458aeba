"""The masking sweep end to end against one full pass of the tower per mask with dense fp32 latents."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benches.gpu.bench import Bench
from benches.gpu.measure import as_data
from benches.gpu.records import Item, Result
from benches.naive_masking import forward, reconstruction
from patchsae.bench.case import Bar, Case, Opponent, Side
from patchsae.bench.findings import Finding
from patchsae.bench.measure import OURS, against, timed
from patchsae.bench.timing import Pace

if TYPE_CHECKING:
    from benches.vit import EndToEnd
    from patchsae.models.clip import SplitCLIP

NAME = "masking sweep end to end"
NEAR = {"fp32": 1e-5, "bf16": 2e-2}
"""Scores (cosines) closer than this are a tie: which of the two is first is decided by rounding."""
Embeddings = dict[tuple[str, str, int], Tensor]


@dataclass(eq=False)
class Sweep:
    """Both sides of the sweep on one end-to-end case with one ranking per class."""

    case: EndToEnd

    def ours(self, clip: SplitCLIP) -> Embeddings:
        from benches.masking import ours

        return ours(self.case, clip)

    @cached_property
    def expected(self) -> Embeddings:
        """What the opponent gives, for the comparison of predictions."""
        return self.naive()

    @torch.no_grad()
    def naive(self) -> Embeddings:
        """One pass as it is and one for every mask; keeping all S latents is the plain reconstruction."""
        c, parameters = self.case, self.case.sae.state_dict()
        model, block = c.clip.model, c.clip.layer
        result = {("none", "unmodified", 0): forward(model, block, c.pixels, lambda residual: residual)}
        ranks = c.rankings["class"][c.labels]
        for k in c.ks:
            result["class", "keep", k] = forward(model, block, c.pixels, reconstruction(parameters, ranks < k))
            result["class", "ablate", k] = forward(model, block, c.pixels, reconstruction(parameters, ranks >= k))
        return result


def items(bench: Bench) -> Iterator[Item]:
    if importlib.util.find_spec("open_clip") is None:
        yield Item(NAME, lambda: Result(skipped="open_clip is not installed"))
        return
    sweep = functools.cache(functools.partial(_build, bench))
    yield Item(f"{NAME}, fp32 tower", lambda: _measure(bench, sweep(), "fp32"))
    yield Item(f"{NAME}, bf16 tower", lambda: _measure(bench, sweep(), "bf16"))


def _measure(bench: Bench, sweep: Sweep, precision: str) -> Result:
    """In fp32 other predictions are a failure; in bf16 they are counted, and the bar needs that there are none."""
    clip = sweep.case.clip if precision == "fp32" else sweep.case.halved
    agreement = _agreement(sweep, sweep.ours(clip), sweep.expected, NEAR[precision])
    findings = (Finding("predictions that differ", agreement["differ"], 0 if precision == "fp32" else float("inf")),)
    if not findings[0].ok:
        return Result(findings, agreement)
    side = Side("sweep_embeddings", f"tower {precision}, SAE exact", lambda _p, _turn: sweep.ours(clip))
    passes = f"{1 + 2 * len(sweep.case.ks)} full passes, dense SAE"
    naive = Side(passes, "fp32", lambda _p, _turn: sweep.naive())
    case = Case(NAME, side, opponents=(Opponent(naive, Bar(False, 100)),))
    pace = Pace(min(6.0, max(0.0, bench.left / 3)), 2, 7, 0) if bench.on_gpu else bench.pace
    data = as_data(case, timed({OURS: side, against(0): naive, against(1): side}, None, bench.device, pace))
    data["against"][0]["met"] &= agreement["differ"] == 0
    return Result(findings, data | agreement)


def _agreement(sweep: Sweep, found: Embeddings, expected: Embeddings, near: float) -> dict[str, Any]:
    """Predictions that differ, apart from those where the opponent's two best scores are a tie."""
    differ = ties = 0
    largest = 0.0
    for key, embedding in expected.items():
        scores, ours = embedding.float() @ sweep.case.classifier.T, found[key].float() @ sweep.case.classifier.T
        best = scores.topk(2, dim=1).values
        changed = scores.argmax(1) != ours.argmax(1)
        tied = best[:, 0] - best[:, 1] <= near
        differ += int((changed & ~tied).sum())
        ties += int((changed & tied).sum())
        largest = max(largest, float((scores - ours).abs().max()))
    predictions = len(expected) * len(sweep.case.labels)
    return {"predictions": predictions, "differ": differ, "differ at a tie": ties, "largest score difference": largest}


def _build(bench: Bench) -> Sweep:
    from benches.vit import build_case

    s = bench.size
    return Sweep(
        build_case(s.masked_images, s.d_sae, s.l0, s.ks, s.classes, s.prediction_classes, s.clip, bench.device)
    )

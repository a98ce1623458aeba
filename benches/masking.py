"""The masking sweep at the paper's size against one full forward pass per mask with dense latents."""

from __future__ import annotations

from torch import Tensor

from benches.naive_masking import naive_sweep
from benches.vit import EndToEnd
from patchsae.bench.case import floor, side, unchecked
from patchsae.bench.findings import Finding, Findings
from patchsae.experiments.mask.embeddings import sweep_embeddings
from patchsae.experiments.mask.options import TopKOptions
from patchsae.models.clip import SplitCLIP

Embeddings = dict[tuple[str, str, int], Tensor]


def ours(case: EndToEnd, clip: SplitCLIP | None = None) -> Embeddings:
    """(ranking, mode, k) -> [B, E], by the case's tower or another."""
    swept = sweep_embeddings(clip or case.clip, case.sae, case.pixels, case.labels, case.rankings, TopKOptions(case.ks))
    return {tuple(variant): embedding for variant, embedding in swept.items()}


def naive(case: EndToEnd) -> Embeddings:
    parameters = case.sae.state_dict()
    return naive_sweep(case.clip.model, case.clip.layer, parameters, case.pixels, case.labels, case.rankings, case.ks)


def check(case: EndToEnd, found: Embeddings, expected: Embeddings) -> Findings:
    """Every embedding the same up to float32 rounding, and with them every prediction."""
    largest, changed = 0.0, 0
    for variant, embedding in expected.items():
        largest = max(largest, float((found[variant] - embedding).abs().max()))
        predicted = [(e @ case.classifier.T).argmax(1) for e in (found[variant], embedding)]
        changed += int((predicted[0] != predicted[1]).sum())
    return Finding("largest difference", largest, 1e-5), Finding("predictions that differ", changed, 0)


MASKING = unchecked(ours).beside(
    "masking",
    side("one full pass a mask, dense fp32 SAE", naive),
    floor("one pass of the tower", lambda case: case.clip.embed(case.clip.residual(case.pixels))),
    check,
)

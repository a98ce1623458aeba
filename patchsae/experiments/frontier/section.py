"""The sweep's part of the report: sparsity against quality and concepts, a line per family of autoencoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchsae.disk.runs import Stage
from patchsae.experiments.frontier.result import Point
from patchsae.report import Section, figures, lettering
from patchsae.report.figures import MUTED, SERIES
from patchsae.training.sweep.train import Member
from patchsae.words import counted, percent

_MARKERS = ("o", "s", "D", "^", "v", "P")
_DASHES = ("-", "--", ":", "-.")


def section(points: Sequence[Point], members: Sequence[Member], images: str, stage: Stage) -> Section:
    """Plots and table of the points, and the members that have none."""
    lead = (
        f"{counted(len(points), 'sparse autoencoder')} trained on the same tokens, judged on {images}, which they were "
        f"not trained on. Each is a stage of {stage.name}-saes."
    )
    part = Section("Frontier", lead)
    for member in members:
        if member.diverged is not None:
            part.text(f"{member.trial.name} diverged and is left out: {member.diverged}")
    caption = "Sparser is further left, better is further up; along a line only the sparsity option changes."
    part.figure(frontier_figure(points), caption)
    part.table(
        {
            "autoencoder": [point.name for point in points],
            "L0": [point.l0 for point in points],
            "explained variance": [point.explained_variance for point in points],
            "MSE": [point.mse for point in points],
            "dead": [percent(point.dead) for point in points],
            "dense": [percent(point.dense) for point in points],
            "concept precision": [point.concept_precision for point in points],
            "concept IoU": [point.concept_iou for point in points],
        },
        "MSE is the released loss. Dead latents are active on none of these tokens, dense ones on more than a tenth. "
        "Concept precision and overlap (IoU) are those of the best latent of each concept, chosen on half of the "
        "images and judged on the other, averaged over concepts.",
    )
    return part


def frontier_figure(points: Sequence[Point]) -> Figure:
    """L0 against explained variance and, where images have concepts, against the concept score."""
    panels: list[tuple[str, Callable[[Point], float]]] = [("explained variance", lambda p: p.explained_variance)]
    scored = any(not math.isnan(point.concept_precision) for point in points)
    if scored:
        panels.append(("concept score (average precision)", lambda p: p.concept_precision))
    with figures.style():
        figure = figures.new(7.6 if scored else 5.6, 3.9)
        drawn = figure.subplots(1, len(panels), squeeze=False).ravel()
        for axes, (title, height) in zip(drawn, panels, strict=True):
            _draw(axes, points, height)
            axes.set_title(title)
            axes.set_xlabel("L0 (active latents per token)")
        if scored:
            drawn[-1].axhline(points[0].base_rate, color=MUTED, linewidth=1, linestyle=":", label="chance")
        lettering.legend(figure, drawn[-1], columns=4, handlelength=2.8)
    return figure


def _draw(axes: Axes, points: Sequence[Point], height: Callable[[Point], float]) -> None:
    """Colour and marker say the variant, dashes the expansion and the block."""
    families = list(dict.fromkeys(point.family for point in points))
    variants = list(dict.fromkeys(variant for variant, _, _ in families))
    places = list(dict.fromkeys(family[1:] for family in families))
    for variant, expansion, block in families:
        line = sorted((p for p in points if p.family == (variant, expansion, block)), key=lambda p: p.l0)
        look = variants.index(variant) % len(SERIES)
        dashes = _DASHES[places.index((expansion, block)) % len(_DASHES)]
        label = variant if len(places) == 1 else f"{variant}, x{expansion}, block {block}"
        shown = [(p.l0, height(p)) for p in line if p.l0 > 0]
        x, y = zip(*shown, strict=True) if shown else ((), ())
        axes.plot(x, y, color=SERIES[look], marker=_MARKERS[look], linestyle=dashes, label=label)
    axes.set_xscale("log")

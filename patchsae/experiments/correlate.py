"""How alike datasets, or models, are in what they activate: correlations of a_D, the tokens above tau of every latent.

Lim et al., arXiv 2412.05276: a_D of a dataset is the sum of a_ij[s] = 1(h_ij[s] > tau) over all its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchsae.disk.hashing import fingerprint
from patchsae.disk.runs import Stage
from patchsae.experiments.compare.result import Comparison
from patchsae.experiments.extract.result import Extraction
from patchsae.experiments.stream.job import Job
from patchsae.report import Section, figures, plots


@dataclass(frozen=True, eq=False)
class Activity:
    """What the images of one dataset activate in one model."""

    name: str
    """What tables and plots call it."""
    counts: Tensor
    """int64 [S]: tokens above tau; a_D."""
    threshold: float
    """tau."""
    sae: Mapping[str, Any]
    """The autoencoder, as `describe_sae` has it."""


def activities(stage: Stage) -> list[Activity]:
    """What a finished stage knows: one of an extraction, two (a side each) of a comparison.

    Raises ValueError where the stage is neither.
    """
    if (stage.path / "summary.json").exists():
        extraction = Extraction.load(stage)
        sae = extraction.made_from.get("sae", {})
        return [Activity(stage.name, extraction.counts, extraction.threshold, sae)]
    if (stage.path / "sides.safetensors").exists():
        comparison, threshold = Comparison.load(stage), (stage.config or {})["threshold"]
        sae = comparison.made_from["sae"]
        sides = zip(comparison.distinct_names, comparison.counts, strict=True)
        return [Activity(f"{stage.name}: {name}", counts, threshold, sae) for name, counts in sides]
    raise ValueError(f"{stage.path} is neither an extraction nor a comparison; expected stages of those")


def correlations(counts: Sequence[Tensor]) -> Tensor:
    """Pearson's correlation of every two of n vectors [S] over the latents: float64 [n, n].

    NaN where one of the two is the same for all latents (nothing fired), for then there is none.
    """
    centred = torch.stack([vector.double() - vector.double().mean() for vector in counts])
    norms: Tensor = centred.norm(dim=1)
    products = centred @ centred.T / (norms[:, None] * norms[None])
    constant = norms == 0
    products.fill_diagonal_(1)  # as it is but for rounding
    return products.clamp(-1, 1).masked_fill(constant[:, None] | constant[None], torch.nan)


def run(found: Sequence[Activity], job: Job | Stage) -> Tensor:
    """Correlate every two of n activities and leave ``correlation.csv`` (a row and a column each), a heat map
    ``correlation.png`` and a report section in the stage.

    Returns float64 [n, n] as :func:`correlations`.

    Raises ValueError for fewer than two, two of one name, or different autoencoders or thresholds.
    """
    job = Job.of(job)
    _require_comparable(found)
    names = [activity.name for activity in found]
    matrix = correlations([activity.counts for activity in found])
    made_from = {"counts": fingerprint({activity.name: activity.counts for activity in found}), "names": names}

    def write(stage: Stage, matrix: Tensor) -> Section:
        values = [[None if value != value else value for value in row] for row in matrix.tolist()]
        stage.write_table("correlation.csv", {"name": names, **dict(zip(names, values, strict=True))})
        figure = plots.heat(matrix.numpy(), names, names, "correlation")
        stage.write_bytes("correlation.png", figures.png(figure))
        lead = (
            f"Correlation over {found[0].counts.numel():,} latents of how many tokens each has above "
            f"{found[0].threshold:g} in {len(names)} pairs of a dataset and a model."
        )
        section = Section("Correlation of datasets", lead)
        section.figure(figure, "1 is the same latents in the same proportions, 0 nothing to do with each other.")
        return section

    job.make(job.config(None, **made_from), lambda: matrix, write)
    return matrix


def _require_comparable(found: Sequence[Activity]) -> None:
    if len(found) < 2:
        raise ValueError(f"there is {len(found)} to correlate; expected at least 2 extractions, or a comparison")
    first, names = found[0], [activity.name for activity in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} occurs twice; expected different stages")
    for other in found[1:]:
        if other.sae != first.sae:
            raise ValueError(f"{other.name} was read with another autoencoder than {first.name}; expected one for all")
        if other.threshold != first.threshold:
            raise ValueError(
                f"{other.name} counts tokens above {other.threshold:g}; expected {first.threshold:g} as {first.name}"
            )

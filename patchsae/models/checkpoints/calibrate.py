"""What a file leaves open, decided by tokens: the reading with the smallest error of reconstruction is taken."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from patchsae.models.checkpoints.format import Answers, Checkpoint
from patchsae.models.checkpoints.load import build, locate, read, with_input
from patchsae.models.sae import SparseAutoencoder

CLOSE = 1.02  # errors of which the larger is no more than this times the smaller: the sparser reading is taken
DECIDED = ("b_dec", "input")
CHUNK = 4096  # tokens encoded at a time


class Reading(NamedTuple):
    """One way of reading a file, and how well it does on the tokens.

    Attributes:
        said: what was taken for each thing that the file leaves open, in words.
        fvu: fraction of variance unexplained, sum |x - x^|^2 / sum |x - mean|^2.
        l0: mean number of active latents.
        subtract_b_dec: None where the file says it.
        mean, std: of the input, folded into the weights; None where tokens are read as they are.
    """

    said: str
    fvu: float
    l0: float
    subtract_b_dec: bool | None = None
    mean: Tensor | float | None = None
    std: float | None = None


@torch.no_grad()
def calibrate(
    source: str | Path, tokens: Tensor, device: str | torch.device = "cpu", answers: Answers | None = None
) -> tuple[SparseAutoencoder, list[Reading]]:
    """Load a SAE, and decide by tokens what its file leaves open: whether b_dec is subtracted, what its input was.

    Args:
        source: as for `load_sae`.
        tokens: ``[N, D]`` of the kind that it was trained on, a few thousand: the output of its block.
        device: of the SAE that is returned, and where readings are tried.
        answers: what is known; it is not tried otherwise.

    Returns:
        The SAE, with what was decided in its metadata, and all readings, the one that was taken first.

    Raises:
        ValueError: as `load_sae`, and for tokens of another width or fewer than two.
    """
    answers = answers or Answers()
    path, known = locate(source)

    def under(subtracts: bool | None, mean: Tensor | float | None, std: float | None) -> Checkpoint:
        taken = answers if subtracts is None else replace(answers, subtract_b_dec=subtracts)
        return with_input(read(path, taken, known), mean, std)

    first = read(path, answers, known)
    _require_tokens(tokens, first.config.d_in)
    x = tokens.detach().to(device, torch.float32)
    readings = []
    for said, subtracts, mean, std in _candidates(first, x):
        sae = build(under(subtracts, mean, std)).to(device).requires_grad_(False)
        readings.append(Reading(said, *_measured(sae, x), subtracts, mean, std))
    readings = _best_first(readings)
    chosen = readings[0]
    found = under(chosen.subtract_b_dec, chosen.mean, chosen.std)
    for key, text in found.unsaid.items():
        if key not in DECIDED:
            warnings.warn(f"{found.file}: {text}", stacklevel=2)
    decided = {} if len(readings) == 1 else {"calibrated": f"{chosen.said}: FVU {chosen.fvu:.4g}, L0 {chosen.l0:.4g}"}
    config = replace(found.config, metadata={**found.config.metadata, **decided})
    return build(replace(found, config=config)).to(device), readings


def _best_first(readings: list[Reading]) -> list[Reading]:
    """By their error; of those that are as good as the best, the sparsest comes first."""
    close = CLOSE * min(reading.fvu for reading in readings)
    good = sorted((reading for reading in readings if reading.fvu <= close), key=lambda reading: reading.l0)
    return good + sorted((reading for reading in readings if reading.fvu > close), key=lambda reading: reading.fvu)


def _candidates(found: Checkpoint, x: Tensor) -> Iterator[tuple[str, bool | None, Tensor | float | None, float | None]]:
    """In words, whether b_dec is subtracted, and mean and deviation of the input."""
    subtracts = [True, False] if "b_dec" in found.unsaid else [None]
    inputs = list(_inputs(x)) if "input" in found.unsaid else [("", None, None)]
    for subtract, (said, mean, std) in itertools.product(subtracts, inputs):
        b_dec = "" if subtract is None else "b_dec subtracted" if subtract else "b_dec not subtracted"
        yield ", ".join(filter(None, (b_dec, said))) or "as the file says", subtract, mean, std


def _inputs(x: Tensor) -> Iterator[tuple[str, Tensor | float | None, float | None]]:
    """How the libraries of this field standardise tokens, with the moments of these."""
    mean = x.double().mean(0)
    yield "tokens as they are", None, None
    yield "minus the mean token, over the deviation about it", mean, float((x - mean).square().mean().sqrt())
    yield "minus one number, over one deviation", float(mean.mean()), float(x.double().std(correction=0))
    yield "scaled to an average length of sqrt(D)", None, float(x.double().norm(dim=1).mean()) / x.shape[1] ** 0.5


def _measured(sae: SparseAutoencoder, x: Tensor) -> tuple[float, float]:
    """FVU and L0."""
    error, active = 0.0, 0
    for part in x.split(CHUNK):
        z = sae.encode(part)
        error += float((sae.decode(z) - part).double().square().sum())
        active += int(z.counts().sum())
    return error / float((x.double() - x.double().mean(0)).square().sum()), active / len(x)


def _require_tokens(tokens: Tensor, d_in: int) -> None:
    if tokens.dim() != 2 or tokens.shape[1] != d_in or len(tokens) < 2:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; expected [N, D] with D = {d_in} and N of at least 2")
    if not bool(tokens.isfinite().all()) or not bool((tokens != tokens[0]).any()):
        raise ValueError("tokens are all the same, or not finite; expected those of some images")

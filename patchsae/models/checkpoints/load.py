"""From any checkpoint to a SAE."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from patchsae.models.checkpoints import detect, hub, open_path, published, understood
from patchsae.models.checkpoints.fold import fold
from patchsae.models.checkpoints.format import Answers, Checkpoint
from patchsae.models.checkpoints.understood import NORMALISED, RAW
from patchsae.models.sae import SparseAutoencoder

NO_ANSWERS = Answers()
OWN = ("patchsae", "patchsae-pt")
"""Formats of PatchSAE itself, which metadata do not name."""


def load_sae(
    source: str | Path,
    device: str | torch.device = "auto",
    *,
    clip: understood.TowerLike | None = None,
    subtract_b_dec: bool | None = None,
    k: int | None = None,
    threshold: float | None = None,
    mean: Tensor | float | None = None,
    std: Tensor | float | None = None,
) -> SparseAutoencoder:
    """Load a SAE from a file or directory of any format in `patchsae.models.checkpoints`, or from the Hugging Face Hub.

    What was understood of another project's file is said in a line on standard error (`understood.line` of the
    configuration has it again); what a file leaves open is warned of, unless an argument here decides it.

    Args:
        source: a path; a short name of `patchsae sae list`; or a Hub id ``owner/name``, ``owner/name/folder/in/it``,
            each with ``@revision`` or without.
        device: "auto" is CUDA where there is one, as for `load_clip`.
        clip: refuse a SAE of another tower, layer or token set than this CLIP's.
        subtract_b_dec: whether the encoder sees x - b_dec or x, for a file that does not say it.
        k, threshold: a token keeps its k largest latents, or those of at least a threshold, for a file that does not
            say which it keeps.
        mean, std: the SAE was trained on (x - mean) / std, numbers or ``[D]`` each, which its file does not say. They
            are folded into the weights.

    Raises:
        FileNotFoundError: neither a path nor a Hub id.
        ValueError: no format fits, the tensors do not, the file answers itself what an argument is to decide, or the
            SAE is not of ``clip``; `archives.UnsafeFileError` for a file that asks for more than tensors and its
            configuration.
        ImportError: a Hub id, and huggingface_hub is not installed.
    """
    path, known = locate(source)
    found = read(path, Answers(subtract_b_dec, k, threshold), known)
    found = with_input(found, mean, std)
    for warning in found.unsaid.values():
        warnings.warn(f"{found.file}: {warning}", stacklevel=2)
    sae = build(found)
    if clip is not None:
        understood.require_of(sae.config, clip)
    if found.format != OWN[0] and os.environ.get("RANK", "0") == "0":
        print(f"sae: {understood.line(sae.config)}", file=sys.stderr)
        if known is not None and known.note:
            print(f"sae: {known.name}: {known.note}", file=sys.stderr)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    return sae.to(there if device == "auto" else device)


def locate(source: str | Path) -> tuple[Path, published.Published | None]:
    """Where a source lies, fetched if need be, and what is known of it besides its file.

    Raises FileNotFoundError and ImportError as `load_sae`.
    """
    path, name = Path(os.path.expanduser(source)), str(source)
    if os.path.exists(path):
        return path, None
    entry = published.find(name)
    if entry is not None and entry.source is None:
        raise FileNotFoundError(f"{name} is not on the Hugging Face Hub: {entry.where}")
    try:
        return hub.fetch(name if entry is None or entry.source is None else entry.source), entry
    except FileNotFoundError as error:
        names = [] if entry else [known.name for known in published.published()]
        close = difflib.get_close_matches(name, names, 1, 0.8)
        said = f"{name}: {error}" if entry else str(error)
        raise FileNotFoundError(f"{said}; did you mean {close[0]}?" if close else said) from error


def read(path: Path, answers: Answers = NO_ANSWERS, known: published.Published | None = None) -> Checkpoint:
    """The checkpoint at a path, whichever format it has. Raises ValueError as `load_sae`.

    known: says what the file need not say, such as the tower; what the file says counts.
    """
    opened = open_path(path)
    format_ = detect(opened)
    if known is not None and known.format != format_.name:
        raise ValueError(f"{opened.file} is of the format {format_.name}; {known.name} is of {known.format}")
    try:
        found = format_.read(opened, answers)
    except ValueError as error:  # of a configuration that no SAE has; what is wrong with a file names it
        if str(path) in str(error):
            raise
        raise ValueError(f"{opened.file}: {error}") from error
    origin: dict[str, str | int | float] = {} if format_.name in OWN else {"format": format_.name}
    origin |= {} if known is None else known.metadata
    config = replace(found.config, metadata={**origin, **found.config.metadata})
    unsaid = dict(found.unsaid)
    if known is not None and known.input and "input" not in config.metadata:
        unsaid["input"] = known.input
    for name, (key, value) in answers.given.items():
        if key not in found.unsaid:
            raise ValueError(f"{name}={value}; {found.file} leaves nothing to decide there: {understood.line(config)}")
        unsaid.pop(key, None)
    return replace(found, config=config, unsaid=unsaid, format=format_.name)


def with_input(found: Checkpoint, mean: Tensor | float | None, std: Tensor | float | None) -> Checkpoint:
    """The same autoencoder for tokens x, where it was trained on (x - mean) / std; both None: as it is.

    Raises ValueError where it normalises its tokens itself, and for a mean or deviation that is none.
    """
    if mean is None and std is None:
        return found
    metadata = found.config.metadata
    per_token = None if found.config.normalise == "latent_norm" else NORMALISED.get(found.config.normalise)
    said = metadata.get("input", per_token or (None if "format" in metadata else RAW))
    if said is not None:
        raise ValueError(f"mean and std are given; {found.file} says itself what it encodes: {said}")
    d_in = found.config.d_in
    shift, scale = _per_dimension("mean", mean, 0.0, d_in), _per_dimension("std", std, 1.0, d_in)
    if not bool((scale > 0).all()):
        raise ValueError("std has entries that are not positive; expected positive numbers")
    parts = {name: found.tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    tensors = {**found.tensors, **fold(**parts, subtracts=True, mean=shift, std=scale)}
    if "spread" in tensors:  # of [u, 1] with the u that the encoder sees
        divided = torch.cat([scale.expand(d_in), torch.ones(1, dtype=torch.float64)])
        tensors["spread"] = (tensors["spread"].double() / divided).float()
    said = "(x - mean) / std" if mean is not None else "x / std"
    config = replace(found.config, metadata={**found.config.metadata, "input": said})
    unsaid = {key: text for key, text in found.unsaid.items() if key != "input"}
    return replace(found, config=config, tensors=tensors, unsaid=unsaid)


def build(found: Checkpoint) -> SparseAutoencoder:
    """The module. Raises ValueError, naming the file, where the tensors do not fit the configuration."""
    try:
        return SparseAutoencoder.from_tensors(found.config, found.tensors)
    except ValueError as error:
        raise ValueError(f"{found.file}: {error}") from error


def _per_dimension(name: str, values: Tensor | float | None, default: float, d_in: int) -> Tensor:
    try:
        given = torch.as_tensor(default if values is None else values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is a {type(values).__name__}; expected a number or a tensor [D] = [{d_in}]") from error
    if given.shape not in ((), (d_in,)) or not bool(given.isfinite().all()):
        raise ValueError(f"{name} has shape {tuple(given.shape)}; expected finite numbers, one or [D] = [{d_in}]")
    return given

"""ViSAEBench: a directory with ``sae.pt`` or ``model.safetensors``, and ``config.json`` or ``config.yaml``.

``h = relu(u W_enc + b_enc)``: a token keeps the k largest of them ("topk"), those of at least a threshold ("batchtopk")
or those above one for each latent ("jumprelu"); ``u^ = h W_dec + b_dec``. The tensors have names of its own, where
``decoder.weight`` is ``[S, D]``, or those of Overcomplete, which it reads in its own way: atoms are not normalised, and
``thresholds`` are no logarithms. The tokens are ``u = (x - mean) / std``, of which the files hold neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.fold import at_least, fold, scaled_latents
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import Taken, require_said, take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

OWN = {"encoder.weight": "S D", "encoder.bias": "S", "decoder.weight": "S D"}
OVERCOMPLETE = {"encoder.final_block.0.weight": "S D", "encoder.final_block.0.bias": "S", "dictionary._weights": "S D"}
BIAS, MULTIPLIER, RUNNING = "decoder.bias", "dictionary.multiplier", "_running_threshold"
THRESHOLDS = ("jump_thresholds", "thresholds")  # the first that is there counts
KINDS = ("topk", "batchtopk", "jumprelu")
DEFAULT_THRESHOLD = 0.01  # of ViSAEBench's jumprelu
INPUT = (
    "it was trained on (x - mean) / std of its tower's patches, which the file does not hold; taken as tokens as they "
    "are, for which its latents mean little. mean=[D numbers] and std=NUMBER decide it"
)


class Kept(NamedTuple):
    """Which latents a token keeps: its k largest positive ones, or those above a threshold ``[S]``.

    open: what the file does not say of it, and what was taken.
    """

    k: int | None
    threshold: Tensor | None
    open: str


def _matches(opened: Opened) -> bool:
    said, names = opened.config, opened.table.keys()
    ours = {"input_dim", "hidden_dim"} <= said.keys() and not opened.header
    return ours and (OWN.keys() <= names or OVERCOMPLETE.keys() <= names)


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, said = opened.file, opened.config
    own = OWN.keys() <= opened.table.keys()
    names = OWN if own else OVERCOMPLETE
    optional = {RUNNING: "", **dict.fromkeys(THRESHOLDS, "S"), **({BIAS: "D"} if own else {MULTIPLIER: ""})}
    taken = take(file, opened.table, names, optional)
    require_said(file, said, taken.sizes, {"input_dim": "D", "hidden_dim": "S"})
    kind = _kind(file, said)
    kept = _kept(file, said, kind, taken)
    if kept.open:
        kept = _answered(file, kept, answers, taken.sizes["S"])
    metadata: dict[str, str | int | float] = {
        "variant": f"{kind or KINDS[0]}{'' if own else ' by the names of Overcomplete'}",
        "b_dec": understood.NOT_SUBTRACTED if BIAS in taken.tensors else understood.NO_B_DEC,
        "tokens": "patches",  # its towers give no others
        **({"l0": said["k"]} if kind == "batchtopk" and type(said.get("k")) is int else {}),
    }
    activation = "topk" if kept.threshold is None else "jumprelu"
    config = SAEConfig(taken.sizes["D"], taken.sizes["S"], activation, kept.k, metadata)
    tensors = _folded(taken.tensors, *names) | ({} if kept.threshold is None else {"threshold": kept.threshold})
    return Checkpoint(file, config, tensors, {"input": INPUT, **({"activation": kept.open} if kept.open else {})})


def _kind(file: Path, said: Mapping[str, Any]) -> str | None:
    """One of `KINDS`; None where the file says none."""
    name = next((said[key] for key in ("activation", "sae_type", "architecture") if said.get(key) is not None), None)
    if name is None:
        return None
    if not isinstance(name, str) or name.lower() not in KINDS:
        raise ValueError(f"{file} has the activation {str(name)[:40]}; this patchsae reads {', '.join(KINDS)}")
    return name.lower()


def _kept(file: Path, said: Mapping[str, Any], kind: str | None, taken: Taken) -> Kept:
    d_sae = taken.sizes["S"]
    if kind in (None, "topk"):
        k = said.get("k")
        if k is None:
            return Kept(None, None, "it does not say its k")
        return Kept(k, None, "" if kind else f"it does not say which latents it keeps; taken as topk {str(k)[:20]}")
    if kind == "jumprelu":
        name = next((name for name in THRESHOLDS if name in taken.tensors), None)
        if name is not None:
            return Kept(None, taken.tensors[name].clamp(min=0), "")
        same = torch.full((d_sae,), DEFAULT_THRESHOLD)
        return Kept(None, same, f"it holds no thresholds; taken as {DEFAULT_THRESHOLD} for each")
    least = said.get("threshold")
    if least is None and RUNNING in taken.tensors:
        least = float(taken.tensors[RUNNING])
    if least is None:
        return Kept(None, torch.zeros(d_sae), "it says no threshold; taken as 0, which keeps every positive latent")
    return Kept(None, _at_least(file, least, d_sae), "")


def _answered(file: Path, kept: Kept, answers: Answers, d_sae: int) -> Kept:
    """What whoever loads it says, where the file does not; else what ViSAEBench takes."""
    decides = "k=K or threshold=NUMBER decides it"
    if answers.threshold is not None:
        return Kept(None, _at_least(file, answers.threshold, d_sae), kept.open)
    if answers.k is not None:
        return Kept(answers.k, None, kept.open)
    if kept.k is None and kept.threshold is None:
        raise ValueError(f"{file} holds a topk SAE whose configuration has no k; {decides}")
    return kept._replace(open=f"{kept.open}, as ViSAEBench does. {decides}")


def _at_least(file: Path, least: Any, d_sae: int) -> Tensor:
    number = isinstance(least, int | float) and not isinstance(least, bool)
    if not (number and abs(least) < torch.finfo(torch.float32).max):
        raise ValueError(f"{file}: threshold is {str(least)[:40]}; expected a finite number")
    return at_least(torch.tensor(float(least))).expand(d_sae).contiguous()


def _folded(w: Mapping[str, Tensor], weight: str, bias: str, atoms: str) -> dict[str, Tensor]:
    W_dec = w[atoms]
    if MULTIPLIER in w:
        W_dec = scaled_latents(W_dec, w[MULTIPLIER].double().exp().expand(len(W_dec)))
    b_dec = w.get(BIAS, torch.zeros(W_dec.shape[1]))
    return fold(W_enc=w[weight].T, b_enc=w[bias], W_dec=W_dec, b_dec=b_dec, subtracts=False)


FORMAT = Format(
    "visaebench",
    _matches,
    _read,
)

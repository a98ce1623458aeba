"""MSAE (Zaigrajew et al., arXiv 2502.20578): ``{"model", "mean_center", "scaling_factor", "target_norm"}``.

``u = (x - mean_center) scaling_factor``, where it says so layer-normed; ``pre = (u - pre_bias) encoder + latent_bias``;
latents are bounded by c tanh(h / c) where it caps them; ``x^ = (h decoder + pre_bias) / scaling_factor + mean_center``.
Its settings are in its file's name alone: ``S_D_activation[_k][_RW|_UW]_tied_normalize_cap_dataset.pth``.

One that was trained by TopKReLU or BatchTopKReLU is used by its authors with all positive latents: these are what their
evaluation saves, names and reconstructs from, and a Matryoshka one is meant for every k. So relu is what is taken, and
an argument keeps fewer. Without the ReLU all positive and negative ones would be left; there, k counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.chosen import Chosen, by_answers
from patchsae.models.checkpoints.fold import fold
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import is_number, require_said, take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

SHAPES = {"encoder": "D S", "latent_bias": "S", "pre_bias": "D", "mean_center": "D"}
LOG_THRESHOLD = "activation.log_threshold"
COUNTED = "latents_activation_frequency"  # says nothing of inference
NAME = re.compile(
    r"(\d{1,9})_(\d{1,9})_(ReLU|JumpReLU|Identity|(?:Batch)?TopK(?:abs)?(?:ReLU)?)(?:_(\d{1,9}))?(?:_(RW|UW))?"
    r"_(True|False)_(True|False)_(\d{1,9}(?:\.\d{1,9})?)(?:_|\.pt)"
)
DATA = re.compile(r"_(ViT-[BL]~\d\d|RN50)_(?:train|validation|val|test)_(image|text)_")
FORM = "S_D_activation_..._tied_normalize_cap_..."
CHOICE = "k=K keeps a token's K largest latents, threshold=T those of at least T"


class Settings(NamedTuple):
    """What a file's name says, or what is taken where it says nothing.

    Attributes:
        sizes: {"S": ..., "D": ...}; empty where it says nothing.
        activation: as MSAE names it; "" where it says nothing.
        k: of a TopK.
        tied: whether the decoder is the encoder's transpose.
        normalize: whether each token is layer-normed.
        cap: 0 is none.
    """

    sizes: Mapping[str, int]
    activation: str
    k: int | None
    tied: bool
    normalize: bool = False
    cap: float = 0.0


def _matches(opened: Opened) -> bool:
    return {"model", "mean_center", "scaling_factor"} <= opened.table.keys() and "encoder" in opened.tensors("model")


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, state = opened.file, opened.tensors("model")
    settings = _settings(file, state)
    _refuse_activations(file, settings.activation)
    decoder = {} if settings.tied else {"decoder": "S D"}
    jump = {LOG_THRESHOLD: "S"} if settings.activation == "JumpReLU" else {}
    given = {**state, "mean_center": opened.table["mean_center"]}
    w, sizes = take(file, given, SHAPES | decoder | jump, ignored=(COUNTED,))
    require_said(file, settings.sizes, sizes, {key: key[0] for key in settings.sizes})
    scaling = _scaling(file, opened.table, w["mean_center"], settings.normalize)
    tensors = fold(
        W_enc=w["encoder"],
        b_enc=w["latent_bias"],
        W_dec=w["encoder"].T if settings.tied else w["decoder"],
        b_dec=w["pre_bias"],
        subtracts=True,
        mean=w["mean_center"],
        std=1 / scaling,
    )
    chosen, unsaid = _chosen(settings, w.get(LOG_THRESHOLD), sizes["S"], answers)
    if chosen.threshold is not None:
        tensors["threshold"] = chosen.threshold
    metadata = _metadata(file, settings)
    cap = settings.cap if settings.cap > 0 else None
    normalise = "layer_norm" if settings.normalize else "none"
    config = SAEConfig(sizes["D"], sizes["S"], chosen.activation, chosen.k, metadata, normalise, cap)
    return Checkpoint(file, config, tensors, unsaid | _unsaid_settings(settings))


def _settings(file: Path, state: Mapping[str, Tensor]) -> Settings:
    found = NAME.match(file.name)
    if found is None:
        return Settings({}, "JumpReLU" if LOG_THRESHOLD in state else "", None, "decoder" not in state)
    d_sae, d_in, activation, k, _, tied, normalize, cap = found.groups()
    sizes = {"S in its name": int(d_sae), "D in its name": int(d_in)}
    of = int(k) if k is not None and "TopK" in activation else None
    return Settings(sizes, activation, of, tied == "True", normalize == "True", float(cap))


def _refuse_activations(file: Path, activation: str) -> None:
    if "abs" in activation:
        raise ValueError(
            f"{file} holds a {activation} SAE, which keeps latents by their size whatever their sign, as no activation "
            "of this patchsae does"
        )
    if activation == "Identity":
        raise ValueError(f"{file} holds an autoencoder whose latents are all kept (Identity), which is not sparse")


def _scaling(file: Path, table: Mapping[str, Any], mean: Tensor, normalize: bool) -> float:
    """What centred tokens are multiplied by."""
    scaling = table["scaling_factor"]
    if not is_number(scaling, 0):
        raise ValueError(f"{file}: scaling_factor is {str(scaling)[:40]}; expected a positive number")
    if normalize and (scaling != 1 or bool(mean.any())):
        raise ValueError(
            f"{file} layer-norms tokens that were centred and scaled (scaling_factor={scaling:g}), which this patchsae "
            "does not: it layer-norms tokens as they are"
        )
    return float(scaling)


def _chosen(
    settings: Settings, log_threshold: Tensor | None, d_sae: int, answers: Answers
) -> tuple[Chosen, dict[str, str]]:
    """Which latents a token keeps, and what of that the file leaves open."""
    name, k = settings.activation, settings.k
    if log_threshold is not None:
        return Chosen("jumprelu", None, log_threshold.exp()), {}
    if name == "ReLU":
        return Chosen("relu"), {}
    if name == "TopK":
        return Chosen("topk_no_relu", k), {}
    if name == "BatchTopK":
        chosen = by_answers(answers, d_sae, Chosen("topk_no_relu", k), "topk_no_relu")
        said = f"its k of {k} is a whole batch's mean; taken as the {k} largest of each token"
        return chosen, {"activation": f"{said}. {CHOICE}"}
    said = f"its authors use a {name} of k {k} with all positive latents, and k in training alone; taken as relu"
    if not name:
        said = f"its name is not of the form {FORM}, which alone says which latents a token keeps; taken as relu"
    return by_answers(answers, d_sae, Chosen("relu")), {"activation": f"{said}. {CHOICE}"}


def _unsaid_settings(settings: Settings) -> dict[str, str]:
    if settings.sizes:
        return {}
    said = "which alone says whether it layer-norms tokens and caps latents; taken as neither"
    return {"settings": f"its name is not of the form {FORM}, {said}. The name that its authors gave it decides it"}


def _metadata(file: Path, settings: Settings) -> dict[str, str | int | float]:
    found = NAME.match(file.name)
    words = [] if found is None else [part for part in (found[3], found[4], found[5]) if part is not None]
    data = DATA.search(file.name)
    said: dict[str, str | int | float] = {
        "variant": "_".join(words) or settings.activation or "of a name that says nothing",
        "b_dec": understood.SUBTRACTED,
    }
    if not settings.normalize:
        said["input"] = "(x - mean_center) scaling_factor"
    if data is not None:  # OpenAI's weights are all that it loads
        said |= {"model": f"{data[1].replace('~', '-')}-quickgelu", "pretrained": "openai"}
        said |= {"tokens": "embedding"} if data[2] == "image" else {}
    return said


FORMAT = Format("msae", _matches, _read)

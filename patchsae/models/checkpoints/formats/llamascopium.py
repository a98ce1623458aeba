"""Llamascopium, once lm-saes (OpenMOSS): a directory with ``sae_weights.safetensors`` and ``config.json``.

``pre = u W_E + b_E`` (nothing is subtracted), where u is x scaled to a length of about sqrt(D). With
``sparsity_include_decoder_norm`` the choice of latents is among ``pre |W_D row|``, and a latent is the ``pre`` that was
chosen: a threshold is then one of ``pre`` divided by that length, and the choice of a top-k is kept by latents that are
multiplied by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae.models.checkpoints import origin, understood
from patchsae.models.checkpoints.fold import at_least, fold, row_norms, scaled_latents
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.formats import above
from patchsae.models.checkpoints.layout import flag, require_said, take, text
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

SHAPES = {"W_E": "D S", "b_E": "S", "W_D": "S D"}
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
AVERAGE = "dataset_average_activation_norm."  # of a hook; meant only where the configuration says dataset-wise
DEFAULT_K = 50  # of Llamascopium's configuration
ACTIVATIONS = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "topk"}
NORMS = {"inference": "none", "dataset-wise": "none", "token-wise": "norm_rescale"}
REFUSED = {
    "crosscoder": "reads several activations at once",
    "clt": "reconstructs other activations than the one it reads",
    "molt": "reconstructs another activation than the one it reads, by a choice of linear maps",
    "lorsa": "encodes a token by attention to the tokens before it",
}


def _matches(opened: Opened) -> bool:
    return not opened.header and "W_E" in _state(opened)


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, said, state = opened.file, above.config(opened), _state(opened)
    if not said:
        raise ValueError(
            f"{file} has no config.json beside it, which says its activation and what it does to its input"
        )
    kind = _kind(file, said, state)
    averages = {name: state.pop(name) for name in list(state) if name.startswith(AVERAGE)}
    threshold = {LOG_THRESHOLD: "S"} if kind == "jumprelu" else {}
    has_bias = flag(file, said, "use_decoder_bias", True)
    taken = take(file, state, {**SHAPES, **({"b_D": "D"} if has_bias else {}), **threshold})
    _require_sizes(file, said, taken.sizes)
    norm = _norm(file, said)
    std, unsaid = _factor(file, said, averages, taken.sizes["D"]) if norm == "dataset-wise" else (1.0, {})
    by_length = flag(file, said, "sparsity_include_decoder_norm", True)
    is_scaled = by_length and ACTIVATIONS[kind] == "topk"
    tensors = _folded(taken.tensors, by_length, is_scaled, std)
    config = SAEConfig(
        taken.sizes["D"],
        taken.sizes["S"],
        ACTIVATIONS[kind],
        said.get("top_k", DEFAULT_K) if ACTIVATIONS[kind] == "topk" else None,
        {
            "variant": f"{kind}, latents times the length of their rows of W_D" if is_scaled else kind,
            "b_dec": understood.NOT_SUBTRACTED if has_bias else understood.NO_B_DEC,
            **origin.place(said.get("hook_point_in")),
            **({"input": understood.RAW} if norm == "inference" else {}),
            **({"input": f"x / {std:g}"} if norm == "dataset-wise" and not unsaid else {}),
        },
        NORMS[norm],
    )
    found = Checkpoint(file, config, tensors, unsaid)
    return _chosen(found, answers) if kind == "batchtopk" else found


def _state(opened: Opened) -> dict[str, Tensor]:
    return opened.tensors("sae") if isinstance(opened.table.get("sae"), Mapping) else opened.tensors()


def _kind(file: Path, said: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Its activation. Raises ValueError for what is no autoencoder of a token."""
    model = text(file, said, "sae_type", "sae")
    if model in REFUSED:
        raise ValueError(f"{file} holds a {model}, which this patchsae does not represent: it {REFUSED[model]}")
    if model != "sae":
        raise ValueError(f"{file} has the sae_type {model[:40]}; this patchsae reads sae")
    if flag(file, said, "use_glu_encoder", False) or "W_E_glu" in state:
        raise ValueError(f"{file} has a GLU encoder, whose latents are products that no activation of this patchsae is")
    if said.get("hook_point_in") != said.get("hook_point_out"):
        raise ValueError(f"{file} holds a transcoder, which reconstructs another activation than the one it reads")
    kind = text(file, said, "act_fn", "relu").lower()
    if kind not in ACTIVATIONS:
        raise ValueError(f"{file} has the activation {kind[:40]}; this patchsae reads {', '.join(ACTIVATIONS)}")
    return kind


def _require_sizes(file: Path, said: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    require_said(file, said, sizes, {"d_model": "D", "d_sae": "S"})
    factor, low, high = said.get("expansion_factor"), (sizes["S"] - 1) / sizes["D"], (sizes["S"] + 1) / sizes["D"]
    if isinstance(factor, int | float) and not low < factor < high:
        raise ValueError(
            f"{file}: expansion_factor is {str(factor)[:40]}, and the tensors have S / D = {sizes['S']} / {sizes['D']}"
        )


def _norm(file: Path, said: Mapping[str, Any]) -> str:
    norm = text(file, said, "norm_activation", "dataset-wise")
    if norm == "batch-wise":
        raise ValueError(f"{file} scales each token by the average length in its batch, which no token alone says")
    if norm not in NORMS:
        raise ValueError(f"{file} has norm_activation {norm[:40]}; this patchsae reads {', '.join(NORMS)}")
    return norm


def _factor(
    file: Path, said: Mapping[str, Any], averages: Mapping[str, Tensor], d_in: int
) -> tuple[float, dict[str, str]]:
    """What tokens are divided by, and what the file leaves open: the average length of tokens, by sqrt(D)."""
    average = averages.get(f"{AVERAGE}{said.get('hook_point_in')}")
    if average is None:
        return 1.0, {
            "input": "it was trained on tokens scaled to an average length of sqrt(D), and does not say by which "
            "factor; taken for tokens as they are. std=(mean length of tokens) / sqrt(D) decides it"
        }
    length = float(average) if average.is_floating_point() and average.numel() == 1 else math.nan
    if not 0 < length < math.inf:
        raise ValueError(f"{file}: the average length of its tokens is {length:g}; expected a positive number")
    return length / math.sqrt(d_in), {}


def _folded(w: Mapping[str, Tensor], by_length: bool, is_scaled: bool, std: float) -> dict[str, Tensor]:
    """Our tensors. A latent whose row of W_D is 0 is never chosen by length."""
    W_enc, b_enc, W_dec = w["W_E"], w["b_E"], w["W_D"]
    b_dec = w.get("b_D", torch.zeros(len(W_enc)))
    lengths = row_norms(W_dec) if by_length else torch.ones(len(W_dec), dtype=torch.float64)
    divided = lengths.where(lengths > 0, 1)
    factor = lengths if is_scaled else (lengths > 0).double()
    if bool((factor != 1).any()):
        W_enc, b_enc = scaled_latents(W_enc.T, factor).T, (b_enc.double() * factor).float()
    if is_scaled:
        W_dec = scaled_latents(W_dec, 1 / divided)
    tensors = fold(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, subtracts=False, std=std)
    if LOG_THRESHOLD in w:
        tensors["threshold"] = (w[LOG_THRESHOLD].double().exp() / divided).float()
    return tensors


def _chosen(found: Checkpoint, answers: Answers) -> Checkpoint:
    """A batchtopk, whose choice is among all tokens of a batch: each token's k largest, or those of a threshold."""
    config, tensors = found.config, dict(found.tensors)
    if answers.threshold is not None:
        tensors["threshold"] = at_least(torch.full((config.d_sae,), answers.threshold))
        config = SAEConfig(config.d_in, config.d_sae, "jumprelu", None, config.metadata, config.normalise)
    elif answers.k is not None:
        config = SAEConfig(config.d_in, config.d_sae, "topk", answers.k, config.metadata, config.normalise)
    left = (
        f"its batchtopk chooses among all tokens of a batch; taken as topk {found.config.k}, which it is of a single "
        "token. k= or threshold= decides it"
    )
    return Checkpoint(found.file, config, tensors, {**found.unsaid, "activation": left})


FORMAT = Format(
    "llamascopium",
    _matches,
    _read,
)

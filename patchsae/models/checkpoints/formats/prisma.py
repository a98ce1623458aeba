"""ViT-Prisma: W_enc, b_enc, W_dec, b_dec as `torch.save` writes them, and its configuration beside or in the file.

``x -> normalise -> u``, ``pre = (u - b_dec) W_enc + b_enc``. Three layouts: a state dict beside ``config.json``;
``{"cfg", "state_dict"}`` with a pickled object of ViT-Prisma; and, before these, a table in the file,
``{"config", "autoencoder": {"state_dict"}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from patchsae.models.checkpoints import origin, understood
from patchsae.models.checkpoints.fold import fold, gated
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import require_said, take, text
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

PACKAGE = "vit_prisma."
MARKS = ("layer_subtype", "cls_token_only", "use_patches_only")  # of its configuration alone
STANDARD = {"W_enc": "D S", "b_enc": "S", "W_dec": "S D", "b_dec": "D"}
GATED = {"W_enc": "D S", "W_dec": "S D", "b_dec": "D", "b_gate": "S", "b_mag": "S", "r_mag": "S"}
NORMALISE = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "norm_rescale"}
DEFAULT_K = 64
TANH = 1.0  # tanh(relu(pre)) is the soft cap c tanh(h / c) of c = 1


class Parts(NamedTuple):
    """Attributes:

    legacy: whether it is the layout with a table in the file.
    settings: the configuration; untrusted values, none of them a tensor.
    state: tensors by name, and whatever lies beside them.
    """

    legacy: bool
    settings: Mapping[str, Any]
    state: Mapping[str, Any]


def _matches(opened: Opened) -> bool:
    return not opened.header and _parts(opened) is not None


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, parts = opened.file, _parts(opened)
    assert parts is not None, "it matches"
    settings = parts.settings
    kind = _architecture(file, settings, parts.state)
    activation, k, unsaid = _activation(file, parts, answers)
    if kind == "gated" and activation == "topk":
        raise ValueError(
            f"{file} holds a gated SAE whose latents are then chosen by topk, which this patchsae does not"
        )
    shapes, ignored = (GATED, ("b_enc",)) if kind == "gated" else (STANDARD, ())  # nothing uses that b_enc
    taken = take(file, parts.state, shapes, ignored=ignored)
    _require_sizes(file, settings, taken.sizes)
    normalise = _normalise(file, settings)
    metadata: dict[str, str | int | float] = {
        "variant": f"legacy, {kind}" if parts.legacy else kind,
        "b_dec": understood.SUBTRACTED,
        "tokens": _tokens(file, settings),
        **({"input": understood.RAW} if normalise == "none" else {}),
        **origin.tower(settings.get("model_name")),
        **_place(settings),
    }
    d_in, d_sae = taken.sizes["D"], taken.sizes["S"]
    ours = "jumprelu" if kind == "gated" else "topk" if activation == "topk" else "relu"
    cap = TANH if activation == "tanh-relu" else None
    return Checkpoint(file, SAEConfig(d_in, d_sae, ours, k, metadata, normalise, cap), _folded(taken.tensors), unsaid)


def _parts(opened: Opened) -> Parts | None:
    """Which of the layouts it is, if any."""
    table = opened.table
    state, inner = table.get("state_dict"), table.get("autoencoder")
    if type(table.get("cfg")).__name__.startswith(PACKAGE) and isinstance(state, Mapping):
        return Parts(False, _settings(vars(table["cfg"])), state)
    if isinstance(inner, Mapping) and isinstance(table.get("config"), Mapping):
        state = inner.get("state_dict")
        return Parts(True, _settings(table["config"]), state) if isinstance(state, Mapping) else None
    if "W_enc" in table and any(mark in opened.config for mark in MARKS):
        return Parts(False, opened.config, table)
    return None


def _settings(entries: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in entries.items() if not isinstance(value, Tensor)}


def _architecture(file: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """ "standard" or "gated"."""
    if settings.get("is_transcoder") not in (None, False) or "b_dec_out" in state or "W_skip" in state:
        raise ValueError(f"{file} holds a transcoder, which reconstructs another activation than the one it reads")
    kind = text(file, settings, "architecture", "standard")
    if kind not in ("standard", "gated"):
        raise ValueError(f"{file} has the architecture {kind[:40]}; this patchsae reads standard and gated")
    return kind


def _activation(file: Path, parts: Parts, answers: Answers) -> tuple[str, int | None, dict[str, str]]:
    """ "relu", "tanh-relu" or "topk" with its k; and what of these the file leaves open."""
    name = text(file, parts.settings, "activation_fn_str", "relu" if parts.legacy else None)
    if name in ("relu", "tanh-relu"):
        return name, None, {}
    if name != "topk":
        raise ValueError(f"{file} has the activation {name[:40]}; this patchsae reads relu, tanh-relu and topk")
    more = parts.settings.get("activation_fn_kwargs") or {}
    if not isinstance(more, Mapping) or not more.keys() <= {"k"}:
        raise ValueError(f"{file}: activation_fn_kwargs is {str(more)[:40]}; expected k alone")
    if "k" in more:
        return name, more["k"], {}
    taken_as = DEFAULT_K if answers.k is None else answers.k
    return name, taken_as, {"activation": f"it does not say its k; taken as ViT-Prisma's {DEFAULT_K}. k=K decides it"}


def _normalise(file: Path, settings: Mapping[str, Any]) -> str:
    """Where it says nothing, ViT-Prisma normalises; null is nothing said of what to do."""
    if settings.get("normalize_activations", "") is None:
        return "none"
    name = text(file, settings, "normalize_activations", "layer_norm")
    if name not in NORMALISE:
        raise ValueError(
            f"{file}: normalize_activations is {name[:40]}; expected null or one of {', '.join(NORMALISE)}"
        )
    return NORMALISE[name]


def _require_sizes(file: Path, settings: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    d_in, factor = settings.get("d_in"), settings.get("expansion_factor")
    said = {"d_in": d_in, "d_sae": settings.get("d_sae")}
    if type(d_in) is int and type(factor) is int:
        said["d_in * expansion_factor"] = d_in * factor
    require_said(file, said, sizes, {"d_in": "D", "d_sae": "S", "d_in * expansion_factor": "S"})


def _folded(w: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "r_mag" not in w:
        return fold(**w, subtracts=True)
    W_enc, b_enc, threshold = gated(W_enc=w["W_enc"], r_mag=w["r_mag"], b_mag=w["b_mag"], b_gate=w["b_gate"])
    folded = fold(W_enc=W_enc, b_enc=b_enc, W_dec=w["W_dec"], b_dec=w["b_dec"], subtracts=True)
    return folded | {"threshold": threshold}


def _tokens(file: Path, settings: Mapping[str, Any]) -> str:
    flags = {"cls": "cls_token_only", "patches": "use_patches_only"}
    for key in flags.values():
        if type(settings.get(key, False)) is not bool:
            raise ValueError(f"{file}: {key} is {str(settings[key])[:40]}; expected true or false")
    chosen = [tokens for tokens, key in flags.items() if settings.get(key)]
    if len(chosen) == len(flags):
        raise ValueError(f"{file}: {' and '.join(flags.values())} are both true; expected one of them at most")
    return chosen[0] if chosen else "all"


def _place(settings: Mapping[str, Any]) -> dict[str, str | int]:
    """The block whose output it reads, or the name of what else it reads."""
    layer, of = settings.get("hook_point_layer"), settings.get("layer_subtype")
    if isinstance(layer, list) and len(layer) == 1:
        layer = layer[0]
    said = type(layer) is int and isinstance(of, str)
    hook = f"blocks.{layer}.{of}" if said else settings.get("hook_point")
    return origin.place(hook)


FORMAT = Format(
    "prisma",
    _matches,
    _read,
    packages=(PACKAGE,),
)

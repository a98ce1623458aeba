"""saev (OSU NLP Group): one file, a line of JSON before what `torch.save` wrote.

The encoder is ``act(x W_enc + b_enc)``; until 2025-07-31 it was ``act((x - b_dec) W_enc + b_enc)``, and the file does
not say which. Schemas: none (``d_vit``, ``exp_factor``; ReLU), 1 (``cls`` and ``cfg``), 2 to 5 (``cfg.activation``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae.disk.atomic import replacing
from patchsae.models.checkpoints import holds, origin, understood
from patchsae.models.checkpoints.fold import fold, unsubtracted
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import Taken, require_said, take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

WEIGHTS = "sae.pt"
SHAPES = {"W_enc": "D S", "b_enc": "S", "W_dec": "S D", "b_dec": "D"}
THRESHOLD = "activation.threshold"
SCHEMAS = (1, 2, 3, 4, 5)
DEFAULT_K = 32  # of saev's TopK, for a header that does not say it
ACTIVATIONS = {"relu": "relu", "topk": "topk_no_relu", "batchtopk": "jumprelu"}
WRITTEN = {"relu": "Relu", "topk_no_relu": "TopK", "jumprelu": "BatchTopK"}


def _matches(opened: Opened) -> bool:
    return bool(opened.header)


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, header = opened.file, opened.header
    schema = header.get("schema")
    if schema is not None and schema not in SCHEMAS:
        raise ValueError(f"{file} has saev schema {str(schema)[:40]}; this patchsae reads none and 1 to {SCHEMAS[-1]}")
    settings = header if schema is None else _table(file, header, "cfg")
    kind, k = _activation(file, header, settings)
    if kind == "batchtopk" and THRESHOLD not in opened.table:
        raise ValueError(
            f"{file} holds a BatchTopK SAE without {THRESHOLD}, of before 2025-11-16, when what a token kept depended "
            "on its batch; this patchsae reads those with a threshold"
        )
    taken = take(file, opened.tensors(), SHAPES | ({THRESHOLD: ""} if kind == "batchtopk" else {}))
    _require_sizes(file, settings, taken)
    open_ = schema in (None, 1)
    taken_as = open_ if answers.subtract_b_dec is None or not open_ else answers.subtract_b_dec
    metadata: dict[str, str | int | float] = {
        "variant": f"{'without schema' if schema is None else f'schema {schema}'}, {kind}",
        "b_dec": understood.SUBTRACTED if taken_as else understood.NOT_SUBTRACTED,
        **origin.ours(_table(file, header, "origin") if "origin" in header else {}),
    }
    d_in, d_sae = taken.sizes["D"], taken.sizes["S"]
    most = min(k, d_sae) if isinstance(k, int) else k  # as saev takes it
    if kind == "batchtopk" and isinstance(most, int):
        metadata["l0"] = most
    config = SAEConfig(d_in, d_sae, ACTIVATIONS[kind], most if kind == "topk" else None, metadata)
    parts = {name: taken.tensors[name] for name in SHAPES}
    tensors = fold(**parts, subtracts=taken_as)
    if kind == "batchtopk":
        tensors["threshold"] = taken.tensors[THRESHOLD].clamp(min=0).expand(taken.sizes["S"]).contiguous()
    return Checkpoint(file, config, tensors, _unsaid(schema, taken.tensors["b_dec"]))


def _unsaid(schema: object, b_dec: Tensor) -> dict[str, str]:
    """Whether b_dec is subtracted is open in files that may be of before saev's encoder changed, unless it is 0."""
    if schema not in (None, 1) or not bool(b_dec.any()):
        return {}
    return {
        "b_dec": "saev's encoder subtracted b_dec from its input until 2025-07-31, and files of that time do not say "
        "so; taken as subtracted. subtract_b_dec=True or False decides it"
    }


def _activation(file: Path, header: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, int | None]:
    """ "relu", "topk" or "batchtopk", and the k of the latter two."""
    if "schema" not in header:
        return "relu", None
    activation = settings.get("activation")
    if isinstance(activation, Mapping):  # {"cls": "TopK", "params": {"top_k": 32, ...}}
        name, params = activation.get("cls"), _table(file, activation, "params")
    else:
        name, params = header.get("cls"), settings
    kind = str(name).lower()
    if kind not in ACTIVATIONS:
        raise ValueError(f"{file} has the activation {str(name)[:40]}; this patchsae reads Relu, TopK and BatchTopK")
    return kind, params.get("top_k", DEFAULT_K) if kind != "relu" else None


def _require_sizes(file: Path, settings: Mapping[str, Any], taken: Taken) -> None:
    d_in = settings.get("d_model", settings.get("d_vit"))
    factor = settings.get("exp_factor")
    d_sae = settings.get("d_sae")
    if d_sae is None and isinstance(d_in, int) and isinstance(factor, int):
        d_sae = d_in * factor
    require_said(file, {"d_model": d_in, "d_sae": d_sae}, taken.sizes, {"d_model": "D", "d_sae": "S"})


def _table(file: Path, record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"{file}: {key} of its header is {str(value)[:40]}; expected a table")
    return value


def _write(config: SAEConfig, state: Mapping[str, Tensor], folder: Path) -> None:
    if config.activation == "topk":
        raise ValueError(
            "saev cannot hold the activation topk: its TopK keeps negative latents where fewer than k are positive"
        )
    holds.require(config, "saev", tuple(WRITTEN))
    tensors = {name: state[name] for name in SHAPES} | {"b_enc": unsubtracted(state)}
    params = {"top_k": config.k} if config.k else {}
    if config.activation == "jumprelu":
        tensors[THRESHOLD] = holds.one_threshold(state["threshold"], "saev")
    header = {
        "schema": SCHEMAS[-1],
        "cfg": {
            "d_model": config.d_in,
            "d_sae": config.d_sae,
            "activation": {"cls": WRITTEN[config.activation], "params": params},
            "normalize_w_dec": False,
        },
        "commit": "unknown",
        "lib": "unknown",
        "origin": origin.ours(config.metadata),  # which saev does not look at
    }
    with replacing(folder / WEIGHTS) as temporary, temporary.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(tensors, file)


FORMAT = Format(
    "saev",
    _matches,
    _read,
    _write,
)

"""EleutherAI's sparsify: a folder for each hookpoint ("layers.10") with ``sae.safetensors`` and ``cfg.json``.

``relu((x - b_dec) W_enc + b_enc)``, of which a token keeps its k largest. A transcoder of theirs subtracts nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from patchsae.disk.atomic import replacing, write_text
from patchsae.models.checkpoints import holds, origin, understood
from patchsae.models.checkpoints.fold import fold
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import flag, require_said, take, text
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
SHAPES = {"encoder.weight": "S D", "encoder.bias": "S", "W_dec": "S D", "b_dec": "D"}
KEYS = ("num_latents", "transcode", "normalize_decoder")
DEFAULT_K = 32  # of sparsify's configuration
LAYER = re.compile(r"layers\.(\d{1,4})")


def _matches(opened: Opened) -> bool:
    if "encoder.weight" not in opened.table:
        return False
    return "W_dec" in opened.table or any(key in opened.config for key in KEYS)


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, said = opened.file, opened.config
    _refuse_what_is_no_topk(file, said, opened.table)
    taken = take(file, opened.tensors(), SHAPES)
    _require_sizes(file, said, taken.sizes)
    k, unsaid = _k(file, said, answers)
    w = taken.tensors
    tensors = fold(
        W_enc=w["encoder.weight"].T, b_enc=w["encoder.bias"], W_dec=w["W_dec"], b_dec=w["b_dec"], subtracts=True
    )
    metadata: dict[str, str | int | float] = {
        "variant": "topk",
        "b_dec": understood.SUBTRACTED,
        **_place(opened),
        **origin.ours(said),
    }
    return Checkpoint(file, SAEConfig(taken.sizes["D"], taken.sizes["S"], "topk", k, metadata), tensors, unsaid)


def _refuse_what_is_no_topk(file: Path, said: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    activation = text(file, said, "activation", "topk")
    reasons = {
        "holds a transcoder, which reconstructs another activation than the one it reads": flag(
            file, said, "transcode", False
        ),
        "has a skip connection, which adds a linear map of the token that no latent stands for": "W_skip" in held
        or flag(file, said, "skip_connection", False),
        "has signed latents, which no activation of this patchsae keeps": flag(file, said, "signed", False),
        f"has the activation {activation[:40]}; this patchsae reads topk": activation != "topk",
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ValueError(f"{file} {reason}")
    if "W_dec" not in held:
        raise ValueError(f"{file} has no W_dec: it was saved to encode alone, and nothing can be decoded with it")


def _require_sizes(file: Path, said: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    require_said(file, said, sizes, {"d_in": "D"})
    factor = said.get("expansion_factor")
    if said.get("num_latents") not in (None, 0):
        require_said(file, said, sizes, {"num_latents": "S"})
    elif isinstance(factor, int) and "d_in" in said:
        require_said(file, {"d_in * expansion_factor": sizes["D"] * factor}, sizes, {"d_in * expansion_factor": "S"})


def _k(file: Path, said: Mapping[str, Any], answers: Answers) -> tuple[Any, dict[str, str]]:
    """k, and what of it the file leaves open."""
    if any(key in said for key in (*KEYS, "k")):
        return said.get("k", DEFAULT_K), {}
    unsaid = f"without its {CONFIG} it does not say how many latents a token keeps; k= decides it"
    if answers.k is None:
        raise ValueError(f"{file}: {unsaid}")
    return answers.k, {"activation": unsaid}


def _place(opened: Opened) -> dict[str, str | int]:
    """What the folder of a hookpoint is called after; nothing where it has another name."""
    name = opened.file.absolute().parent.name
    place = LAYER.fullmatch(name)
    if place is not None:
        return {"layer": int(place[1])}
    return {"hook": name[:200]} if LAYER.match(name) else {}


def _write(config: SAEConfig, state: Mapping[str, Tensor], folder: Path) -> None:
    holds.require(config, "sparsify", ("topk",))
    tensors = {
        "encoder.weight": state["W_enc"].T.contiguous(),
        "encoder.bias": state["b_enc"],
        "W_dec": state["W_dec"],
        "b_dec": state["b_dec"],
    }
    record = {
        "activation": "topk",
        "expansion_factor": max(1, config.d_sae // config.d_in),
        "normalize_decoder": False,
        "num_latents": config.d_sae,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": config.d_in,
        **origin.ours(config.metadata),  # for which sparsify has no place
    }
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_text(folder / CONFIG, json.dumps(record) + "\n")


FORMAT = Format(
    "sparsify",
    _matches,
    _read,
    _write,
)

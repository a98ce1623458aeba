"""The encoders of Overcomplete and its forks that are one linear map, with or without a norm after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from patchsae.models.checkpoints.formats import norms

LINEAR = {"encoder.final_block.0.weight": "S D", "encoder.final_block.0.bias": "S"}
NORM = "encoder.final_block.1"
LAYER_NORM = LINEAR | {f"{NORM}.{name}": "S" for name in ("weight", "bias")}
BATCH_NORM = LAYER_NORM | {f"{NORM}.{name}": "S" for name in ("running_mean", "running_var")}
COUNTED = f"{NORM}.num_batches_tracked"  # says nothing of inference
SHAPES = {
    "linear": LINEAR,
    "mlp_ln_1": LAYER_NORM,
    "mlp_bn_1": BATCH_NORM,
    "untied": {"encoder.weight": "S D"},
    "tied": {},
}
OPTIONAL = {"untied": {"encoder.bias": "S"}, "tied": {"encoder.bias": "S"}}
TIED_TO = "encoder.tied_to."
BLOCKS = {
    "mlp_blocks": "with hidden layers (mlp_ln_3 and mlp_bn_3), which are no linear map",
    "attention_blocks": "of attention, by which a token's latents depend on the others",
    "resnet_blocks": "of convolutions, by which a token's latents depend on its neighbours",
}


def kind_of(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Which encoder of `SHAPES` these tensors are of, by their names. Raises ValueError for one that is none."""
    names = [name.removeprefix("encoder.") for name in tensors if name.startswith("encoder.")]
    if not names:
        raise ValueError(
            f"{file} has no encoder: matching pursuit chooses latents one after the other, each by what the last one "
            "left, which this patchsae does not"
        )
    for block, reason in BLOCKS.items():
        if any(name.startswith(f"{block}.") for name in names):
            raise ValueError(f"{file} has an encoder {reason}; this patchsae reads {', '.join(SHAPES)}")
    if any(name.startswith("tied_to.") for name in names):
        return "tied"
    if "weight" in names:
        return "untied"
    if f"{NORM}.running_mean" in tensors:
        return "mlp_bn_1"
    return "mlp_ln_1" if f"{NORM}.weight" in tensors else "linear"


def require_tied(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a tied encoder is tied to the dictionary that the latents are decoded by."""
    for name, value in tensors.items():
        if name.startswith(TIED_TO):
            other = tensors.get(f"dictionary.{name.removeprefix(TIED_TO)}")
            if other is None or not torch.equal(value, other):
                raise ValueError(f"{file}: {name} is not that of dictionary; expected an encoder tied to it")


def folded(kind: str, w: Mapping[str, Tensor], atoms: Tensor, epsilon: float = norms.EPSILON) -> dict[str, Tensor]:
    """W_enc and b_enc of ours, and what `norms.layer_norm` adds to them.

    Args:
        kind: one of `SHAPES`, whose tensors ``w`` holds.
        atoms: the dictionary ``[S, D]``, which a tied encoder reads.
        epsilon: of its norm.

    Raises:
        ValueError: a variance is negative.
    """
    if kind in ("tied", "untied"):
        rows = atoms if kind == "tied" else w["encoder.weight"]
        return {"W_enc": rows.T, "b_enc": w.get("encoder.bias", torch.zeros(len(rows)))}
    W_enc, b_enc = w["encoder.final_block.0.weight"].T, w["encoder.final_block.0.bias"]
    norm = {name.rpartition(".")[2]: value for name, value in w.items() if name.startswith(NORM)}
    if kind == "mlp_ln_1":
        return norms.layer_norm(W_enc, b_enc, norm, epsilon)
    if kind == "mlp_bn_1":
        W_enc, b_enc = norms.batch_norm(W_enc, b_enc, norm, epsilon)
    return {"W_enc": W_enc, "b_enc": b_enc}

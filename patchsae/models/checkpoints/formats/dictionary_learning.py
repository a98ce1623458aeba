"""dictionary_learning (saprmarks), also as sae-for-vlm carries it: ``ae.pt``, and ``config.json`` beside it.

The file's own values: the library's loader of AutoEncoder scales latents by the length of their decoder rows, which
changes their values; here they are those of its `encode`. Its gates and thresholds are strict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchsae.models.checkpoints import origin, understood
from patchsae.models.checkpoints.fold import at_least, fold, gated
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.formats import above
from patchsae.models.checkpoints.formats.dictionary_learning_writer import write
from patchsae.models.checkpoints.layout import is_number, require_said, take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

LINEAR = {"encoder.weight": "S D", "encoder.bias": "S", "decoder.weight": "D S"}
PLAIN = {"W_enc": "D S", "b_enc": "S", "W_dec": "S D", "b_dec": "D"}
MATRYOSHKA = "MatryoshkaBatchTopKSAE"
SHAPES = {
    "AutoEncoder": {**LINEAR, "bias": "D"},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": "D"},
    "AutoEncoderTopK": {**LINEAR, "b_dec": "D"},
    "BatchTopKSAE": {**LINEAR, "b_dec": "D"},
    MATRYOSHKA: PLAIN,
    "GatedAutoEncoder": {
        "encoder.weight": "S D",
        "decoder.weight": "D S",
        "decoder_bias": "D",
        "r_mag": "S",
        "gate_bias": "S",
        "mag_bias": "S",
    },
    "JumpReluAutoEncoder": {**PLAIN, "threshold": "S"},
}
RESIDUAL = re.compile(r"resid(ual)?(_post)?(_stream)?(_layer)?_?-?\d*\Z")
SPELLINGS = {"MatroyshkaBatchTopKSAE": MATRYOSHKA}
CHOOSING = ("AutoEncoderTopK", "BatchTopKSAE", MATRYOSHKA)
UNSUBTRACTED = ("AutoEncoderNew", "JumpReluAutoEncoder")
INTEGERS = ("k", "group_sizes")
RESUMED = {"step", "ae", "optimizer"}  # what is saved to go on training
BIASES = ("b_dec", "bias", "decoder.bias", "decoder_bias")


class Parts(NamedTuple):
    """Attributes:

    tensors: by name.
    said: what the configuration says of the training.
    factor: the tokens that it encodes are x / factor.
    """

    tensors: dict[str, Tensor]
    said: Mapping[str, Any]
    factor: float = 1.0


class Choice(NamedTuple):
    """Which latents a token keeps.

    Attributes:
        activation: "relu", "topk" or "jumprelu".
        k: of "topk".
        threshold: of "jumprelu", ``[S]`` or ``[]``.
        unsaid: what was taken, where the file leaves it open.
    """

    activation: str
    k: int | None = None
    threshold: Tensor | None = None
    unsaid: str = ""


def _matches(opened: Opened) -> bool:
    if opened.header or not opened.table:
        return False
    return _is_resumed(opened) or bool(_trainer(opened)) or _by_tensors(opened.tensors()) is not None


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, (tensors, said, factor) = opened.file, _parts(opened)
    beside = above.config(opened)
    _refuse_a_transcoder(file, beside)
    kind, is_certain = _kind(file, tensors, said)
    integers = {name: tensors.pop(name) for name in INTEGERS if kind in CHOOSING and name in tensors}
    taken = take(file, tensors, SHAPES[kind], {"threshold": ""} if kind in CHOOSING else {})
    d_in, d_sae = taken.sizes["D"], taken.sizes["S"]
    require_said(file, said, taken.sizes, {"activation_dim": "D", "dict_size": "S"})
    _require_groups(file, integers.get("group_sizes"), d_sae)
    k = _k(file, integers.get("k"), said.get("k")) if kind in CHOOSING else None
    ours, gate = _folded(kind, taken.tensors, factor)
    threshold = taken.tensors.get("threshold")
    if kind in CHOOSING:
        choice = _chosen(file, kind if is_certain else None, k, threshold, answers)
    else:
        choice = _above(threshold if gate is None else gate)
    if choice.threshold is not None:
        ours["threshold"] = choice.threshold.clamp(min=0).expand(d_sae).contiguous()
    metadata: dict[str, str | int | float] = {
        "variant": kind if is_certain else "AutoEncoderTopK or BatchTopKSAE",
        "b_dec": understood.NOT_SUBTRACTED if kind in UNSUBTRACTED else understood.SUBTRACTED,
        **({"l0": k} if k is not None and choice.activation != "topk" else {}),
        **({"input": f"x / {factor:g}"} if factor != 1 else {}),
        **_origin(said, beside),
    }
    config = SAEConfig(d_in, d_sae, choice.activation, choice.k, metadata)
    return Checkpoint(file, config, ours, {"activation": choice.unsaid} if choice.unsaid else {})


def _is_resumed(opened: Opened) -> bool:
    return opened.table.keys() >= RESUMED and isinstance(opened.table["ae"], Mapping)


def _parts(opened: Opened) -> Parts:
    if not _is_resumed(opened):
        return Parts(opened.tensors(), _trainer(opened))
    said, factor = opened.table.get("config"), opened.table.get("norm_factor")
    factor = 1.0 if factor is None else factor
    if not is_number(factor, 0):
        raise ValueError(f"{opened.file}: norm_factor is {str(factor)[:40]}; expected a positive number")
    said = said if isinstance(said, Mapping) else _trainer(opened)
    plain = {key: value for key, value in said.items() if not isinstance(value, Tensor)}
    return Parts(opened.tensors("ae"), plain, float(factor))


def _trainer(opened: Opened) -> Mapping[str, Any]:
    """What its configuration says of the training; empty where it is another's."""
    said = above.config(opened).get("trainer")
    return said if isinstance(said, Mapping) and ("dict_class" in said or "trainer_class" in said) else {}


def _by_tensors(tensors: Mapping[str, Tensor]) -> str | None:
    """The class whose tensors these are and no other library's; AutoEncoderTopK for it and BatchTopKSAE."""
    names = tensors.keys() - {"threshold"}
    for kind in ("AutoEncoder", "AutoEncoderTopK", MATRYOSHKA, "GatedAutoEncoder"):
        own = {"AutoEncoderTopK": {"k"}, MATRYOSHKA: set(INTEGERS)}.get(kind, set())
        if names == SHAPES[kind].keys() | own:
            return kind
    return None


def _kind(file: Path, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> tuple[str, bool]:
    """The class, and whether it is certain: AutoEncoderTopK and BatchTopKSAE have the same tensors."""
    name = said.get("dict_class")
    if name is None:
        kind = _by_tensors(tensors)
        if kind is None:
            raise ValueError(
                f"{file} does not say its dict_class, and holds {', '.join(tensors)[:200] or 'no tensors'}"
            )
        return kind, kind != "AutoEncoderTopK"
    kind = SPELLINGS.get(str(name), str(name))
    if kind not in SHAPES:
        known = ", ".join(SHAPES)
        raise ValueError(
            f"{file} holds dictionary_learning's {kind[:60]}, which this patchsae does not; it reads {known}"
        )
    return kind, True


def _refuse_a_transcoder(file: Path, config: Mapping[str, Any]) -> None:
    buffer = config.get("buffer")
    if isinstance(buffer, Mapping) and buffer.get("io") == "in_and_out":
        raise ValueError(f"{file} holds a transcoder, which reconstructs another activation than the one it reads")


def _require_groups(file: Path, groups: Tensor | None, d_sae: int) -> None:
    """Groups of latents matter to training alone; those that do not make up all latents are of another file."""
    if groups is not None and (not _is_whole(groups) or int(groups.sum()) != d_sae):
        held = int(groups.sum()) if _is_whole(groups) else groups.dtype
        raise ValueError(f"{file}: group_sizes add up to {held}; expected integers that add up to S = {d_sae}")


def _k(file: Path, held: Tensor | None, stated: object) -> int | None:
    """The k that the file and its configuration agree on; None where neither says it."""
    if held is not None and (held.dim() or not _is_whole(held)):
        raise ValueError(f"{file}: k has shape {tuple(held.shape)} and dtype {held.dtype}; expected one integer")
    k = stated if held is None else int(held)
    if stated is not None and stated != k:
        raise ValueError(f"{file}: k is {k}, and its configuration says {str(stated)[:40]}")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f"{file}: k is {str(k)[:40]}; expected an integer of at least 1")
    return k


def _is_whole(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _chosen(file: Path, kind: str | None, k: int | None, threshold: Tensor | None, answers: Answers) -> Choice:
    """The choice of a class that has a k, and a threshold that follows it in training; -1 before it is set.

    kind: None where the tensors do not say which.
    """
    is_set = threshold is not None and bool(threshold >= 0)
    if kind == "AutoEncoderTopK" and k is not None:
        return Choice("topk", k)
    if kind not in (None, "AutoEncoderTopK") and is_set:
        return _above(threshold)
    taken = _left_open(kind, k, float(threshold) if is_set and threshold is not None else None)
    if answers.threshold is not None:
        return _above(at_least(torch.tensor(answers.threshold)))._replace(unsaid=taken.unsaid)
    if answers.k is not None:
        return taken._replace(activation="topk", k=answers.k)
    if taken.activation == "topk" and taken.k is None:
        raise ValueError(f"{file}: {taken.unsaid}")
    return taken


def _left_open(kind: str | None, k: int | None, threshold: float | None) -> Choice:
    """What is taken for what the file does not say."""
    if kind is None:
        above = "threshold= decides" if threshold is None else f"threshold={threshold:.9g} (that of the file) decides"
        unsaid = f"AutoEncoderTopK and BatchTopKSAE have the same tensors; taken as topk {k}. {above} for the other"
        return Choice("topk", k, unsaid=unsaid)
    if kind == "AutoEncoderTopK":
        return Choice("topk", unsaid="it does not say how many latents a token keeps; k= decides it")
    unsaid = (
        f"its threshold was not set in training; taken as keeping every positive latent, as {kind} then does. "
        "k= or threshold= decides it"
    )
    return Choice("relu", unsaid=unsaid)


def _above(threshold: Tensor | None) -> Choice:
    """Latents above a threshold; above 0 is ReLU."""
    if threshold is None or bool((threshold <= 0).all()):
        return Choice("relu")
    return Choice("jumprelu", None, threshold)


def _folded(kind: str, w: Mapping[str, Tensor], factor: float) -> tuple[dict[str, Tensor], Tensor | None]:
    """Our tensors, and the threshold that a gate is."""
    is_linear, gate = "decoder.weight" in w, None
    W_enc, W_dec = (w["encoder.weight"].T, w["decoder.weight"].T) if is_linear else (w["W_enc"], w["W_dec"])
    b_dec = next(w[name] for name in BIASES if name in w)
    if kind == "GatedAutoEncoder":
        W_enc, b_enc, gate = gated(W_enc=W_enc, r_mag=w["r_mag"], b_mag=w["mag_bias"], b_gate=w["gate_bias"])
    else:
        b_enc = w["encoder.bias" if is_linear else "b_enc"]
    subtracts = kind not in UNSUBTRACTED
    return fold(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, subtracts=subtracts, std=factor), gate


def _origin(said: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The tower, and where in it; in the library's words where that is not a residual stream after a block."""
    found: dict[str, str | int | float] = {}
    place, buffer = said.get("submodule_name"), config.get("buffer")
    found |= origin.tower(said.get("lm_name"))
    found |= {key: value for key, value in origin.ours(said).items() if key in ("pretrained", "tokens")}
    layer = said.get("layer")
    place = place if isinstance(place, str) and place else None
    if isinstance(buffer, Mapping) and buffer.get("io") == "in":
        return found | {"hook": f"the input of {place or f'layer {layer}'}"[:200]}
    if place is not None and not RESIDUAL.match(place):
        return found | {"hook": place[:200]}
    return found | ({"layer": layer} if type(layer) is int else {})


FORMAT = Format(
    "dictionary_learning",
    _matches,
    _read,
    write,
)

"""Overcomplete (Kempner Institute): a state dict, or a whole module as ``torch.save(sae)`` pickles it.

``pre = encoder(x)``, without any b_dec; ``h = relu(pre)``, of which a token keeps all (SAE), the k largest (TopKSAE),
those of at least a running threshold (BatchTopKSAE) or of at least exp(thresholds) (JumpSAE); ``x^ = h D``. A state
dict says nothing of k and of the running threshold, which may lie in ``config.json`` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.chosen import Chosen, by_answers, kept_from
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.formats import dictionaries, whole_module
from patchsae.models.checkpoints.formats import overcomplete_encoders as encoders
from patchsae.models.checkpoints.formats.whole_module import Module
from patchsae.models.checkpoints.layout import is_number, take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

PACKAGE = "overcomplete."
KINDS = {  # class -> which latents a token keeps
    "SAE": "relu",
    "TopKSAE": "topk",
    "RATopKSAE": "topk",
    "BatchTopKSAE": "batchtopk",
    "JumpSAE": "jumprelu",
    "RAJumpSAE": "jumprelu",
}
REFUSED = {
    "MpSAE": "it chooses latents by matching pursuit, one after the other, each by what the last one left",
    "OMPSAE": "it chooses latents by matching pursuit, one after the other, each by what the last one left",
    "QSAE": "it rounds its latents to levels",
}
THRESHOLDS, FUSED = "thresholds", "dictionary._fused_dictionary"
ACTIVATION = "torch.nn.modules.activation.ReLU"
VISAEBENCH = {"input_dim", "hidden_dim"}  # whose configuration says these of tensors with the same names


def _matches(opened: Opened) -> bool:
    if opened.header:
        return False
    root = whole_module.root(opened.content)
    if root is not None:
        return type(root).__name__.startswith(PACKAGE)
    names = whole_module.of_state_dict(opened.tensors()).tensors.keys()
    own = "dictionary._weights" in names or {"dictionary.W", "dictionary.C"} <= names
    return own and not opened.config.keys() >= VISAEBENCH


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, root = opened.file, whole_module.root(opened.content)
    module = whole_module.of_state_dict(opened.tensors()) if root is None else whole_module.walk(file, root)
    _refuse_what_is_no_such_sae(file, module)
    encoder = encoders.kind_of(file, module.tensors)
    w, sizes = _taken(file, module, encoder)
    atoms = _atoms(file, module, w)
    epsilon = module.number(file, encoders.NORM, "eps", 1e-5)
    tensors = encoders.folded(encoder, w, atoms, epsilon) | {"W_dec": atoms, "b_dec": torch.zeros(sizes["D"])}
    chosen, unsaid = _chosen(file, module, w, sizes["S"], opened.config, answers)
    if chosen.threshold is not None:
        tensors["threshold"] = chosen.threshold
    archetypal = ", archetypal" if "dictionary.W" in module.tensors else ""
    metadata: dict[str, str | int | float] = {
        "variant": f"{module.kind or 'state dict'}, {encoder}{archetypal}",
        "b_dec": understood.NO_B_DEC,
    }
    normalise = "latent_norm" if "spread" in tensors else "none"
    config = SAEConfig(sizes["D"], sizes["S"], chosen.activation, chosen.k, metadata, normalise)
    return Checkpoint(file, config, tensors, unsaid | _unsaid_dictionary(module, w))


def _refuse_what_is_no_such_sae(file: Path, module: Module) -> None:
    if module.kind in REFUSED or "Q" in module.tensors:
        kind = module.kind if module.kind in REFUSED else "QSAE"
        raise ValueError(f"{file} holds a {kind}, which this patchsae does not represent: {REFUSED[kind]}")
    if module.name and module.kind not in KINDS:
        raise ValueError(f"{file} holds a {module.name[:80]}; this patchsae reads {', '.join(KINDS)}")
    activation = module.class_of("encoder.final_activation")
    if activation not in ("", ACTIVATION):
        raise ValueError(f"{file} has an encoder that ends with {activation[:80]}; this patchsae reads those with ReLU")


def _taken(file: Path, module: Module, encoder: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors that say something, and their sizes."""
    tensors: dict[str, Tensor] = dict(module.tensors)
    fused = module.said("dictionary", "_fused_dictionary")
    if encoder == "tied":
        encoders.require_tied(file, tensors)
    shapes = dict(encoders.SHAPES[encoder])
    optional = dict(encoders.OPTIONAL.get(encoder, {}))
    ignored = {encoders.COUNTED, *(name for name in tensors if name.startswith(encoders.TIED_TO))}
    if isinstance(fused, Tensor) and module.said("dictionary", "training") is False:
        tensors[FUSED] = fused.detach()
        shapes[FUSED] = "S D"
        ignored |= {name for name in tensors if name.startswith("dictionary.")} - {FUSED}
    else:
        shapes |= dictionaries.ARCHETYPAL if "dictionary.W" in tensors else dictionaries.PLAIN
        optional |= dictionaries.MULTIPLIER
    if KINDS.get(module.kind, "jumprelu" if THRESHOLDS in tensors else "") == "jumprelu":
        shapes[THRESHOLDS] = "S"
    taken = take(file, tensors, shapes, optional, ignored)
    return taken.tensors, taken.sizes


def _atoms(file: Path, module: Module, w: Mapping[str, Tensor]) -> Tensor:
    """The dictionary as it is evaluated: the one that `eval` made, where it was saved after that."""
    if FUSED in w:
        return w[FUSED]
    if "dictionary.W" in w:
        return dictionaries.atoms(w, delta=module.number(file, "dictionary", "delta", dictionaries.DELTA))
    return dictionaries.atoms(w, _normalisation(file, module))


def _normalisation(file: Path, module: Module) -> str:
    """Which of `dictionaries.NORMALISATIONS`; a whole module names the function."""
    function = module.said("dictionary", "normalization")
    if function is None:
        return "l2"
    name = function.__name__ if isinstance(function, type) else str(function)
    kind = name.removeprefix("overcomplete.sae.dictionary.normalize_")
    if kind not in dictionaries.NORMALISATIONS:
        known = ", ".join(dictionaries.NORMALISATIONS)
        raise ValueError(f"{file} normalises its dictionary by {name[:80]}; this patchsae knows {known}")
    return kind


def _chosen(
    file: Path, module: Module, w: Mapping[str, Tensor], d_sae: int, beside: Mapping[str, Any], answers: Answers
) -> tuple[Chosen, dict[str, str]]:
    """Which latents a token keeps, and what of that the file leaves open."""
    kind = KINDS.get(module.kind)
    if THRESHOLDS in w:
        return kept_from(w[THRESHOLDS].exp(), d_sae), {}
    if kind in ("relu", "topk"):
        return Chosen(kind, module.said("", "top_k") if kind == "topk" else None), {}
    threshold = module.said("", "running_threshold")
    threshold = beside.get("running_threshold") if threshold is None else threshold
    if threshold is not None:
        return kept_from(_number(file, threshold), d_sae), {}
    of = "a state dict of Overcomplete's" if kind is None else "this BatchTopKSAE, which has no running threshold,"
    said = (
        f"{of} does not say which latents a token keeps; taken as relu, which keeps all that are positive. k=K keeps "
        "the K largest, threshold=T those of at least T"
    )
    return by_answers(answers, d_sae, Chosen("relu")), {"activation": said}


def _number(file: Path, threshold: object) -> float:
    value = threshold.item() if isinstance(threshold, Tensor) and threshold.numel() == 1 else threshold
    if not is_number(value):
        raise ValueError(f"{file}: running_threshold is {str(value)[:40]}; expected a finite number")
    return float(value)


def _unsaid_dictionary(module: Module, w: Mapping[str, Tensor]) -> dict[str, str]:
    """A state dict does not say by which constraint its dictionary is evaluated."""
    found = None if module.name or FUSED in w else dictionaries.unlike_default(w)
    if found is None:
        return {}
    return {
        "dictionary": f"{found}, which its default constraint does not leave; a state dict of Overcomplete's does not "
        "say which constraint its dictionary has, and the default is taken. A whole module (torch.save(sae)) says it"
    }


FORMAT = Format(
    "overcomplete",
    _matches,
    _read,
    stand_ins={"__builtin__.set": lambda *_: None},  # of the names of buffers that are not saved
    packages=(PACKAGE, *whole_module.PACKAGES),
)

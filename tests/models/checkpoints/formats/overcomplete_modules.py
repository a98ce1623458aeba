"""Modules of the classes that Overcomplete has, which are pickled by its names; without Overcomplete."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor, nn

from patchsae.models.checkpoints.formats import dictionaries

CLASSES = {
    "base": ("SAE",),
    "topk_sae": ("TopKSAE",),
    "batchtopk_sae": ("BatchTopKSAE",),
    "jump_sae": ("JumpSAE",),
    "mp_sae": ("MpSAE",),
    "dictionary": ("DictionaryLayer",),
    "archetypal_dictionary": ("RelaxedArchetypalDictionary",),
    "modules": ("MLPEncoder", "TieableEncoder"),
}
FINAL = "encoder.final_block"


@contextmanager
def library() -> Iterator[types.SimpleNamespace]:
    """Its classes, and the functions that normalise a dictionary, by name; they can be pickled while it lasts."""
    names = ("overcomplete", "overcomplete.sae", *(f"overcomplete.sae.{module}" for module in CLASSES))
    modules = {name: types.ModuleType(name) for name in names}
    made = {
        name: type(name, (nn.Module,), {"__module__": f"overcomplete.sae.{module}"})
        for module, classes in CLASSES.items()
        for name in classes
    }
    for kind in (*dictionaries.NORMALISATIONS, "own"):
        function: Any = types.FunctionType((lambda x: x).__code__, {}, f"normalize_{kind}")
        function.__module__, function.__qualname__ = "overcomplete.sae.dictionary", f"normalize_{kind}"
        made[function.__qualname__] = function
    for name, value in made.items():
        setattr(modules[value.__module__], name, value)
    with mock.patch.dict(sys.modules, modules):
        yield types.SimpleNamespace(**made)


def whole(made: types.SimpleNamespace, name: str, tensors: dict[str, Tensor], **attributes: Any) -> nn.Module:
    """A module of the class ``name``, in training, with the tensors of a state dict; its inner modules hold them."""
    sae = getattr(made, name)()
    w = {key: nn.Parameter(value) for key, value in tensors.items() if value.is_floating_point()}
    sae.dictionary = made.RelaxedArchetypalDictionary() if "dictionary.W" in w else made.DictionaryLayer()
    for key in [key for key in w if key.startswith("dictionary.")]:
        setattr(sae.dictionary, key.removeprefix("dictionary."), w[key])
    sae.dictionary._fused_dictionary = None
    sae.dictionary.normalization = made.normalize_l2
    if f"{FINAL}.0.weight" in w:
        sae.encoder = _mlp(made, {key: value for key, value in tensors.items() if key.startswith(FINAL)})
    else:
        sae.encoder = made.TieableEncoder()
        sae.encoder.tied_to = sae.dictionary if "encoder.weight" not in w else None
        sae.encoder.weight, sae.encoder.bias = w.get("encoder.weight"), w.get("encoder.bias")
    for key, value in attributes.items():
        setattr(sae, key, value)
    return sae


def _mlp(made: types.SimpleNamespace, tensors: dict[str, Tensor]) -> nn.Module:
    d_sae, d_in = tensors[f"{FINAL}.0.weight"].shape
    norm: nn.Module = nn.Identity()
    if f"{FINAL}.1.running_mean" in tensors:
        norm = nn.BatchNorm1d(d_sae)
    elif f"{FINAL}.1.weight" in tensors:
        norm = nn.LayerNorm(d_sae)
    encoder = made.MLPEncoder()
    encoder.mlp_blocks, encoder.final_block = nn.ModuleList(), nn.Sequential(nn.Linear(d_in, d_sae), norm)
    encoder.final_activation, encoder.hidden_activation = nn.ReLU(), nn.ReLU
    encoder.final_block.load_state_dict({key.removeprefix(f"{FINAL}."): value for key, value in tensors.items()})
    return encoder

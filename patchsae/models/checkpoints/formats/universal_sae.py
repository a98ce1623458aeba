"""Universal SAE (York University): the checkpoint of one tower's autoencoder, ``{"epoch", "model_state_dict", ...}``.

An older Overcomplete: ``pre = batch_norm(x W + b)``, of which a token keeps the k largest positive ones, and
``x^ = h D`` with rows of D brought to length 1. Latent i is the same concept in the autoencoders that were trained
together. k and the mean and deviation of the tokens are in its authors' configuration, and not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.chosen import Chosen, by_answers
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.formats import dictionaries, whole_module
from patchsae.models.checkpoints.formats import overcomplete_encoders as encoders
from patchsae.models.checkpoints.layout import take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

STATE = "model_state_dict"
DEFAULT_K = 32  # of its authors' configuration
READ = ("mlp_bn_1", "linear")  # a mean and deviation of the tokens fold into these, and not below a layer norm
UNSAID = {
    "activation": f"its file does not say k; taken as its authors' {DEFAULT_K}. k=K decides it",
    "input": "its authors trained it on (x - mean) / std, with one mean and one std (std + 1e-5 there) for each tower, "
    "which are model_mean and model_std of their configuration and not in the file; taken as tokens as they are. "
    "mean=M and std=D decide it",
}


def _matches(opened: Opened) -> bool:
    names = whole_module.of_state_dict(opened.tensors(STATE)).tensors.keys()
    return not opened.header and ("dictionary._weights" in names or "dictionary.W" in names)


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, state = opened.file, whole_module.of_state_dict(opened.tensors(STATE)).tensors
    encoder = encoders.kind_of(file, state)
    if encoder not in READ:
        raise ValueError(f"{file} has the encoder {encoder}; this patchsae reads {', '.join(READ)}")
    dictionary = dictionaries.ARCHETYPAL if "dictionary.W" in state else dictionaries.PLAIN
    shapes = encoders.SHAPES[encoder] | dictionary
    taken = take(file, state, shapes, dictionaries.MULTIPLIER, ignored=(encoders.COUNTED,))
    d_in, d_sae = taken.sizes["D"], taken.sizes["S"]
    atoms = dictionaries.atoms(taken.tensors)
    tensors = encoders.folded(encoder, taken.tensors, atoms) | {"W_dec": atoms, "b_dec": torch.zeros(d_in)}
    chosen = by_answers(answers, d_sae, Chosen("topk", min(DEFAULT_K, d_sae)))
    if chosen.threshold is not None:
        tensors["threshold"] = chosen.threshold
    metadata: Mapping[str, str | int | float] = {"variant": encoder, "b_dec": understood.NO_B_DEC}
    config = SAEConfig(d_in, d_sae, chosen.activation, chosen.k, metadata)
    return Checkpoint(file, config, tensors, UNSAID)


FORMAT = Format("universal-sae", _matches, _read)

"""DN-CBM (Rao et al., ECCV 2024): the state dict of an autoencoder of ai-safety-foundation's sparse_autoencoder.

``h = relu((x - tied_bias) W_e^T + b_e)``, ``x^ = h W_d^T + tied_bias``; each tensor has a first dimension of C
components, one for each place in the model that was read. They encode CLIP's image embeddings, as they are.
"""

from __future__ import annotations

from torch import Tensor

from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.fold import fold
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

SHAPES = {"tied_bias": "C D", "encoder._weight": "C S D", "encoder._bias": "C S", "decoder._weight": "C D S"}
ALIASES = {f"{place}._bias_reference": "C D" for place in ("pre_encoder_bias", "post_decoder_bias")}  # of tied_bias


def _matches(opened: Opened) -> bool:
    return not opened.header and {"encoder._weight", "decoder._weight"} <= opened.tensors().keys()


def _read(opened: Opened, _: Answers) -> Checkpoint:
    file = opened.file
    w, sizes = take(file, _with_components(opened.tensors()), SHAPES, ALIASES)
    if sizes["C"] != 1:
        raise ValueError(f"{file} holds the SAEs of {sizes['C']} places in a model; this patchsae reads those of one")
    for name in ALIASES:
        if name in w and not bool((w[name] == w["tied_bias"]).all()):
            raise ValueError(f"{file}: {name} is not tied_bias; expected the same bias")
    tensors = fold(
        W_enc=w["encoder._weight"][0].T,
        b_enc=w["encoder._bias"][0],
        W_dec=w["decoder._weight"][0].T,
        b_dec=w["tied_bias"][0],
        subtracts=True,
    )
    metadata = {"b_dec": understood.SUBTRACTED, "input": understood.RAW, "tokens": "embedding"}
    return Checkpoint(file, SAEConfig(sizes["D"], sizes["S"], "relu", None, metadata), tensors)


def _with_components(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of one component without the dimension, with it."""
    without = tensors["encoder._weight"].dim() == 2
    return {name: value[None] if without else value for name, value in tensors.items()}


FORMAT = Format("dn-cbm", _matches, _read)

"""sae-ft (arXiv 2605.15961): a state dict of b_pre, encoder.weight and decoder.weight, of CLIP's image embeddings.

``u = x / (|x| + 1e-8)``, ``pre = (u - b_pre) W_e^T``, of which a token keeps the k largest, whatever their sign, and
``u^ = h W_d^T + b_pre``, the reconstruction of u: ours is that of x. k is in the name that its authors give the file
alone, ``sae_[DATASET_]S/D_k.pt``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.chosen import Chosen, by_answers
from patchsae.models.checkpoints.fold import fold
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

SHAPES = {"b_pre": "D", "encoder.weight": "S D", "decoder.weight": "D S"}
NAME = re.compile(r"sae_(?:\w+_)?(\d{1,6})_(\d{1,6})\.pt")
DEFAULT_K = 32


def _matches(opened: Opened) -> bool:
    return not opened.header and opened.tensors().keys() >= SHAPES.keys()


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file = opened.file
    w, sizes = take(file, opened.tensors(), SHAPES)
    k = _k(file.name, sizes)
    taken_as = Chosen("topk_no_relu", min(DEFAULT_K, sizes["S"]) if k is None else k)
    chosen = by_answers(answers, sizes["S"], taken_as, "topk_no_relu") if k is None else taken_as
    tensors = fold(
        W_enc=w["encoder.weight"].T,
        b_enc=torch.zeros(sizes["S"]),
        W_dec=w["decoder.weight"].T,
        b_dec=w["b_pre"],
        subtracts=True,
    )
    if chosen.threshold is not None:
        tensors["threshold"] = chosen.threshold
    metadata = {"variant": "SparseAutoencoderTopK", "b_dec": understood.SUBTRACTED, "tokens": "embedding"}
    config = SAEConfig(sizes["D"], sizes["S"], chosen.activation, chosen.k, metadata, "unit_norm")
    said = f"only its name says k, as sae_MULTIPLE_K.pt; taken as its authors' {DEFAULT_K}. k=K decides it"
    return Checkpoint(file, config, tensors, {"activation": said} if k is None else {})


def _k(name: str, sizes: Mapping[str, int]) -> int | None:
    """k of a name that also says how many latents there are for each dimension, and says that rightly."""
    found = NAME.fullmatch(name)
    return int(found[2]) if found is not None and int(found[1]) == sizes["S"] // sizes["D"] else None


FORMAT = Format("sae-ft", _matches, _read)

"""Kinds of sparse autoencoder to train: an activation, a sparsity term and a term for dead latents each.

`make` gives the one that a configuration asks for; `Variant` says what they have in common. All of them work on the
differentiable sparse `pk.encode` and `pk.decode`, in chunks of tokens; none holds dense latents.
"""

from __future__ import annotations

from patchsae.training.config import TrainConfig
from patchsae.training.variants.auxk import AuxK
from patchsae.training.variants.batchtopk import BatchTopK
from patchsae.training.variants.error import ErrorScale
from patchsae.training.variants.gated import Gated
from patchsae.training.variants.ghost import Ghost
from patchsae.training.variants.jumprelu import JumpReLU
from patchsae.training.variants.matryoshka import Matryoshka
from patchsae.training.variants.relu import ReLU
from patchsae.training.variants.resample import resample
from patchsae.training.variants.topk import TopK
from patchsae.training.variants.variant import DeadTerm, Variant

__all__ = [
    "AuxK",
    "BatchTopK",
    "DeadTerm",
    "ErrorScale",
    "Gated",
    "Ghost",
    "JumpReLU",
    "Matryoshka",
    "ReLU",
    "TopK",
    "Variant",
    "make",
    "resample",
]


def make(config: TrainConfig) -> Variant:
    """The variant of a configuration, with its error scale and dead-latent term.

    `dead_term` "resample" has no term in the loss: call `resample` between steps.
    """
    error = ErrorScale(released=config.loss == "released", cls_weight=config.cls_weight)
    terms: dict[str, DeadTerm] = {"ghost": Ghost(), "auxk": AuxK(config.auxk, config.auxk_coefficient)}
    dead_term = terms.get(config.dead_term)
    if config.variant == "relu":
        return ReLU(error, dead_term, l1=config.l1)
    if config.variant == "topk":
        return TopK(error, dead_term, k=config.k)
    if config.variant == "batchtopk":
        return BatchTopK(error, dead_term, k=config.k)
    if config.variant == "jumprelu":
        return JumpReLU(error, dead_term, l0=config.l0, bandwidth=config.bandwidth, threshold=config.threshold)
    if config.variant == "gated":
        return Gated(error, dead_term, l1=config.l1)
    if config.variant == "matryoshka":
        return Matryoshka(error, dead_term, k=config.k, prefixes=config.prefixes)
    raise ValueError(f"variant is {config.variant!r}, which nothing here makes")

"""OpenAI's sparse_autoencoder: the state dict of its Autoencoder as `torch.save` writes it, with its activation's name.

``h = act((u - pre_bias) W_enc + latent_bias)``, ``u^ = h W_dec + pre_bias``. Whether u is x or the layer-normed x is
not in the file: it is normalised where the activation is TopK, as its own loader takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from patchsae.models.checkpoints import understood
from patchsae.models.checkpoints.chosen import Chosen, by_answers
from patchsae.models.checkpoints.fold import fold
from patchsae.models.checkpoints.format import Answers, Checkpoint, Format
from patchsae.models.checkpoints.layout import take
from patchsae.models.checkpoints.opened import Opened
from patchsae.models.sae_config import SAEConfig

SHAPES = {"pre_bias": "D", "encoder.weight": "S D", "latent_bias": "S"}
DECODER, TIED = "decoder.weight", "decoder.linear.weight"  # the second is the encoder's, saved again
ACTIVATION, SETTINGS = "activation", "activation_state_dict"
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
AGAIN = ("activation.k", "activation.postact_fn")  # the same settings, saved again as those of a submodule


class Activation(NamedTuple):
    """Attributes:

    name: of the activation in its words.
    ours: in ours.
    k: where it has one.
    """

    name: str
    ours: str
    k: int | None = None


def _matches(opened: Opened) -> bool:
    return opened.table.keys() >= SHAPES.keys() and not opened.header


def _read(opened: Opened, answers: Answers) -> Checkpoint:
    file, table = opened.file, opened.table
    beside = opened.config.get(ACTIVATION)
    if ACTIVATION not in table and beside is not None:
        raise ValueError(
            f"{opened.config_file} has the activation {str(beside)[:40]}; files of OpenAI's name theirs themselves: "
            "this is of another project"
        )
    decoder = next((name for name in (DECODER, TIED) if name in table), None)
    shapes = SHAPES | ({} if decoder is None else {decoder: "D S" if decoder == DECODER else "S D"})
    taken = take(file, table, shapes, ignored=(ACTIVATION, SETTINGS, *AGAIN, *STATISTICS))
    chosen = _activation(file, table, taken.sizes["S"])
    normalise = "layer_norm" if chosen.name == "TopK" else "none"
    metadata: dict[str, str | int | float] = {
        "variant": chosen.name if decoder == DECODER else f"{chosen.name}, tied",
        "b_dec": understood.SUBTRACTED,
        **({"input": understood.RAW} if normalise == "none" else {}),
    }
    w = taken.tensors
    W_dec = w[DECODER].T if decoder == DECODER else w[decoder or "encoder.weight"]
    config = SAEConfig(taken.sizes["D"], taken.sizes["S"], chosen.ours, chosen.k, metadata, normalise)
    tensors = fold(
        W_enc=w["encoder.weight"].T, b_enc=w["latent_bias"], W_dec=W_dec, b_dec=w["pre_bias"], subtracts=True
    )
    if ACTIVATION in table:
        return Checkpoint(file, config, tensors)
    return _with_answers(Checkpoint(file, config, tensors), answers)


def _activation(file: Path, table: Mapping[str, Any], d_sae: int) -> Activation:
    """Its activation; files of before there was a choice name none and have ReLU."""
    name = table.get(ACTIVATION, "ReLU")
    if not isinstance(name, str) or name not in ("ReLU", "Identity", "TopK"):
        raise ValueError(f"{file} has the activation {str(name)[:40]}; this patchsae reads ReLU, Identity and TopK")
    if name == "ReLU":
        return Activation(name, "relu")
    if name == "Identity":  # the S largest of S latents, whatever their sign
        return Activation(name, "topk_no_relu", d_sae)
    settings = table.get(SETTINGS)
    if not isinstance(settings, Mapping) or not {"k", "postact_fn"} <= settings.keys():
        raise ValueError(f"{file}: {SETTINGS} is {str(settings)[:40]}; expected k and postact_fn of its TopK")
    after = settings["postact_fn"]
    if not isinstance(after, str) or after not in ("ReLU", "Identity"):
        raise ValueError(f"{file}: postact_fn of its TopK is {str(after)[:40]}; this patchsae reads ReLU and Identity")
    return Activation(name, "topk" if after == "ReLU" else "topk_no_relu", settings["k"])


def _with_answers(found: Checkpoint, answers: Answers) -> Checkpoint:
    """One that names no activation, as those of before there was a choice."""
    config, d_sae = found.config, found.config.d_sae
    chosen = by_answers(answers, d_sae, Chosen("relu"))
    threshold = {} if chosen.threshold is None else {"threshold": chosen.threshold}
    said = "it names no activation; taken as ReLU. k=K keeps a token's K largest latents, threshold=T those from T on"
    return replace(
        found,
        config=replace(config, activation=chosen.activation, k=chosen.k),
        tensors={**found.tensors, **threshold},
        unsaid={"activation": said},
    )


FORMAT = Format(
    "openai",
    _matches,
    _read,
)

"""What was understood of a checkpoint, in one line, and whether it is of the CLIP at hand.

A reader leaves it in the metadata of the configuration: ``format``, ``variant`` (the class or version within it),
``b_dec`` and ``input`` (in words), ``tokens`` ("all", "patches", "cls", "embedding"), ``model``, ``pretrained`` and
``layer``; or ``hook``, the name of what it reads where that is not the output of a block. What a file promises besides
is in ``l0`` (active latents of a token, on average) and ``dead`` (share of latents that are never active).
"""

from __future__ import annotations

from typing import Protocol

from patchsae.models.openai_names import OPENAI
from patchsae.models.sae_config import SAEConfig

SUBTRACTED, NOT_SUBTRACTED, NO_B_DEC = "b_dec subtracted", "b_dec not subtracted", "no b_dec"
RAW = "tokens as they are"
NORMALISED = {
    "layer_norm": "each token layer-normed",
    "norm_rescale": "each token scaled to length sqrt(D)",
    "unit_norm": "each token scaled to length 1",
    "latent_norm": "pre-activations layer-normed over the latents",
}
TOKENS = {"all": "all tokens", "patches": "patches", "cls": "CLS", "embedding": "image embeddings"}


class TowerLike(Protocol):
    """What of a `SplitCLIP` is looked at."""

    name: str
    layer: int
    layers: int
    width: int
    embed_dim: int


def line(config: SAEConfig) -> str:
    """Format, variant, sizes, activation, what is done with b_dec and the input, tower, block and tokens."""
    said = config.metadata
    variant = f" {said['variant']}" if "variant" in said else ""
    kind = f"{config.activation} {config.k}" if config.k else config.activation
    cap = f", capped at {config.soft_cap:g}" if config.soft_cap is not None else ""
    model = f"{said.get('model', 'a tower that is not said')}"
    weights = f" {said['pretrained']}" if "pretrained" in said else ""
    layer = f"output of block {said['layer']}" if "layer" in said else str(said.get("hook", "a block that is not said"))
    tokens = TOKENS.get(str(said.get("tokens")), "tokens not said")
    done = [str(said.get("b_dec", SUBTRACTED)), NORMALISED.get(config.normalise, str(said.get("input", RAW)))]
    return (
        f"{said.get('format', 'patchsae')}{variant}: {kind}{cap}, D {config.d_in:,}, S {config.d_sae:,}; "
        f"{', '.join(done)}; {model}{weights}, {layer}, {tokens}"
    )


def require_of(config: SAEConfig, clip: TowerLike, cls: bool = False) -> None:
    """Raise ValueError unless a SAE is of this tower, at this block. What the SAE does not say is not asked.

    cls: one that was trained on CLS alone will do.
    """
    require_readable(config, clip, cls)
    said = config.metadata
    for key, theirs, ours in (
        ("model", _plain(said.get("model")), _plain(clip.name)),
        ("pretrained", said.get("pretrained"), getattr(clip, "pretrained", None)),
        ("layer", _block(said.get("layer"), clip.layers), clip.layer),
    ):
        if theirs is not None and ours is not None and theirs != ours:
            raise ValueError(f"the SAE was trained on another {key}: {theirs}; clip has {ours}")


def require_readable(config: SAEConfig, clip: TowerLike, cls: bool = False) -> None:
    """Raise ValueError unless a SAE can be asked about every token that this tower gives at its block.

    cls: or about CLS alone.
    """
    said = config.metadata
    if said.get("tokens") == "embedding" or (config.d_in != clip.width and config.d_in == clip.embed_dim):
        raise ValueError(
            f"the SAE reads pooled image embeddings of width {config.d_in}; expected one of the tokens of {clip.name}, "
            f"of width {clip.width}"
        )
    if config.d_in != clip.width:
        raise ValueError(f"the SAE reads tokens of width {config.d_in}; {clip.name} has width {clip.width}")
    if "hook" in said:
        raise ValueError(f"the SAE reads {said['hook']}; clip gives the output of a block")
    if said.get("tokens") == "cls" and not cls:
        raise ValueError(
            f"the SAE was trained on CLS alone; {clip.name} gives it every patch, of which it knows nothing"
        )


def _plain(model: object) -> str | None:
    """A tower's name without what does not make it another; None for one that lies in a folder."""
    name = str(model) if model is not None else ""
    name = OPENAI.get(name, name)
    if not name or name.startswith(("local-dir:", "/", ".")):
        return None
    return name.replace("/", "-").removesuffix("-quickgelu").lower()


def _block(layer: object, layers: int) -> int | None:
    """A block counted from the start; one that the tower does not have stays as it is said."""
    if not isinstance(layer, int):
        return None
    return layer + layers if -layers <= layer < 0 else layer
